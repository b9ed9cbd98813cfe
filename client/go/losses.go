package lightningstore

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Minimum time between two summaries of lost spans.
const summaryPeriod = time.Minute

// losses counts lost spans and logs them: the first loss of a kind at once, all others in a summary, at most
// one per minute. Many losses therefore cause few log lines, and every loss is counted in one.
type losses struct {
	log *slog.Logger
	// after calls a function after a duration: time.AfterFunc, or a replacement in tests.
	after func(time.Duration, func())

	mu      sync.Mutex
	total   int64
	unsaid  map[string]int64 // by kind; a kind that was said has an entry
	pending bool             // a summary is due
}

func newLosses(log *slog.Logger) *losses {
	return &losses{log: log, unsaid: map[string]int64{},
		after: func(delay time.Duration, do func()) { time.AfterFunc(delay, do) }}
}

// add counts lost spans of one kind. The details have the form of slog's arguments.
func (l *losses) add(count int64, why string, details ...any) {
	l.mu.Lock()
	l.total += count
	total := l.total
	unsaid, known := l.unsaid[why]
	isDue := false
	if known {
		l.unsaid[why] = unsaid + count
		isDue, l.pending = !l.pending, true
	} else {
		l.unsaid[why] = 0
	}
	l.mu.Unlock()
	if isDue {
		l.after(summaryPeriod, l.summarize)
	}
	if !known {
		l.log.Warn("spans lost", append(details, "why", why, "count", count, "total", total)...)
	}
}

// summarize logs what was counted since the last summary.
func (l *losses) summarize() {
	l.mu.Lock()
	l.pending = false
	var counts []any
	for _, why := range slices.Sorted(maps.Keys(l.unsaid)) {
		if count := l.unsaid[why]; count > 0 {
			counts = append(counts, slog.Int64(why, count))
			l.unsaid[why] = 0
		}
	}
	total := l.total
	l.mu.Unlock()
	if len(counts) > 0 {
		l.log.Warn("more spans lost", slog.Group("why", counts...), "total", total)
	}
}

func (l *losses) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}
