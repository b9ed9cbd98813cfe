package lightningstore

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var programPattern = regexp.MustCompile("(?s)```go\n(package main\n.*?)```")

// buildPrograms builds the programs of the README and returns their paths.
func buildPrograms(t *testing.T) []string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	// An overlay makes the files seem to be in this module, where their imports are known.
	overlay := map[string]map[string]string{"Replace": {}}
	var built, names []string
	for i, found := range programPattern.FindAllSubmatch(readme, -1) {
		name := "snippet" + strconv.Itoa(i)
		source := filepath.Join(scratch, name+".go")
		if err := os.WriteFile(source, found[1], 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][filepath.Join(here, name, "main.go")] = source
		names, built = append(names, "./"+name), append(built, filepath.Join(scratch, name))
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(scratch, "overlay.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", append([]string{"build", "-buildvcs=false", "-overlay", file, "-o", scratch}, names...)...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return built
}

func TestProgramsOfTheReadme(t *testing.T) {
	programs := buildPrograms(t)
	if len(programs) != 5 {
		t.Fatal("the page must have a runner, an algorithm, training control, consumers and an exporter: ", programs)
	}
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	t.Setenv(addressVariable, address)
	runner := exec.Command(programs[0])
	runner.Stderr = os.Stderr
	if err := runner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runner.Process.Kill() })
	output := runProgram(t, programs[1])
	if lines := strings.Count(output, "\n"); lines != 8 ||
		!strings.Contains(output, `{"question":3} ROLLOUT_STATUS_SUCCEEDED 3 true`) ||
		!strings.Contains(output, `{"question":7} ROLLOUT_STATUS_FAILED 0 false`) {
		t.Fatal(output)
	}
	if output := runProgram(t, programs[2]); output != "task-1 mean reward 1.5, with the new weights: true\n"+
		"best: 3 map[judge:0.7]\n" {
		t.Fatal(output)
	}
	if output := runProgram(t, programs[3]); output != "task-2 1.5 2\n" {
		t.Fatal(output)
	}
	if output := runProgram(t, programs[4]); output != "step <nil>\n" {
		t.Fatal(output)
	}
	if err := runner.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- runner.Wait() }()
	if err := next(t, ended, "the end of the runner"); err != nil {
		t.Fatal(err)
	}
}

func runProgram(t *testing.T, program string) string {
	t.Helper()
	command := exec.Command(program)
	command.Stderr = os.Stderr
	command.WaitDelay = time.Second
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return string(output)
}
