// Package enginetest is the conformance suite of the engine contract. Every
// engine runs it in its own tests:
//
//	func TestConformance(t *testing.T) {
//		enginetest.Run(t, func(t *testing.T) engine.Engine { return newEngine(t) }, enginetest.Fixture{...})
//	}
package enginetest

import "time"

// Fixture says what the suite may run on an engine. Its commands are given to the engine
// unchanged as engine.Process.Command. A process that "runs until TERM" must end
// soon after TERM, also as the first process of its container (which ignores
// signals without a handler).
type Fixture struct {
	// Image is a reference that the engine has; Digest may pin it and may be empty.
	Image, Digest string
	// MissingImage is a reference that the engine neither has nor can pull.
	MissingImage string

	// Serve answers HTTP on $PORT of all addresses until TERM: 200 for GET /ok,
	// 404 for GET /missing.
	Serve []string
	// Lines writes "line 1" to "line 50" to stdout, then the value of $GREETING to
	// stdout, then "oops" to stderr, and then runs until TERM without listening.
	Lines []string
	// Crash writes "last words" to stdout and ends at once with exit code 3.
	Crash []string
	// Short runs for about half a second, and then ends with exit code 0.
	Short []string
	// Job writes the value of $GREETING and a newline to stdout, copies its stdin
	// to stdout, writes "oops" to stderr and ends with exit code 3.
	Job []string
	// Terminal ends with exit code 5 unless stdin, stdout and stderr are a terminal. For
	// each line that it reads it writes the terminal's size as "<rows> <columns>",
	// until the line is "end": then it ends with exit code 4.
	Terminal []string
	// Sleep runs until TERM (or KILL) without listening and prints nothing.
	Sleep []string

	// Measures says that the engine knows how much memory its processes use.
	Measures bool

	// Wait bounds how long the suite waits for what must happen soon; zero is 15 s.
	Wait time.Duration
	// Leftovers, if set, fails the test when anything outside the engine's own view remains of an
	// app whose sets were removed or whose job has ended: containers, snapshots,
	// network namespaces. It gets the app's UUID and returns what it found.
	Leftovers func(app string) []string
}
