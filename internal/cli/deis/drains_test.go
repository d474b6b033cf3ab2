package deis

import (
	"testing"
	"time"
)

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"15m":                    now.Add(-15 * time.Minute),
		"2026-11-22T11:00:00UTC": now.Add(-time.Hour),
		"2026-11-22T11:00:00Z":   now.Add(-time.Hour),
		"2026-11-22":             now.Add(-12 * time.Hour),
		"-15m":                   {},
		"yesterday":              {},
	} {
		got, err := parseSince(text, now)
		if !got.Equal(want) || (err != nil) != want.IsZero() {
			t.Errorf("parseSince(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
}
