package main

import (
	"encoding/json"
	"math"
	"os"
	"strconv"
	"testing"
)

// vectors are shared with the Python and TypeScript tests; examples/cartpole/vectors.py generates them.
type vectors struct {
	Steps    []json.RawMessage `json:"steps"`
	Episodes []struct {
		policy
		episode
		Actions string `json:"actions"`
		End     state  `json:"end"`
	} `json:"episodes"`
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile("../../../../examples/cartpole/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var found vectors
	if err := json.Unmarshal(text, &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Steps) < 100 || len(found.Episodes) < 30 {
		t.Fatal("too few vectors: ", len(found.Steps), len(found.Episodes))
	}
	return found
}

func TestStepIsThatOfGymnasium(t *testing.T) {
	for _, row := range readVectors(t).Steps {
		var before, after state
		var action int
		var over bool
		if err := json.Unmarshal(row, &[]any{&before, &action, &after, &over}); err != nil {
			t.Fatal(err)
		}
		found := step(before, action)
		for i := range after {
			if math.Abs(found[i]-after[i]) > 1e-12 {
				t.Fatalf("%v, pushed %d: %v, not %v", before, action, found, after)
			}
		}
		if isOver(found) != over {
			t.Fatalf("over at %v: %t", found, !over)
		}
	}
}

func TestEpisodesAreThoseOfTheOtherLanguagesToTheLastBit(t *testing.T) {
	for n, wanted := range readVectors(t).Episodes {
		weights := vary(wanted.Mean, wanted.Spread, wanted.Noise)
		now, actions := wanted.Start, ""
		for len(actions) < longest && !isOver(now) {
			action := act(weights, now)
			actions += strconv.Itoa(action)
			now = step(now, action)
		}
		if actions != wanted.Actions || now != wanted.End {
			t.Fatalf("episode %d: %d steps to %v, not %d to %v", n, len(actions), now, len(wanted.Actions), wanted.End)
		}
	}
}
