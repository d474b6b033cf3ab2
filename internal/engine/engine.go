// Package engine is the contract between the controller and what runs the
// instances. It is declarative, so that a cluster scheduler can be an engine as
// well as one machine's containerd. Package enginetest tests it.
package engine

import (
	"context"
	"io"
	"time"

	"github.com/deis/deis/internal/paas"
)

// DefaultPort is PORT where neither the config nor the image says otherwise
// (contract 9.6).
const DefaultPort = 5000

// StopGrace is the time between TERM and KILL (contract 8).
const StopGrace = 10 * time.Second

// Engine runs sets of instances.
//
// All methods may be called concurrently, also for one set: an engine
// serialises what it must. All are idempotent: repeating a call, or making it
// after a crash of the engine's client, leads to the same end. Contexts bound
// the call, never the life of what it started. Errors that concern the user
// (an image that is not there, no memory) carry paas codes; others do not.
type Engine interface {
	// Apply makes the instances spec.Nums of spec.SetKey exist and run, and
	// removes every other instance of that key, youngest first, each with TERM, StopGrace, KILL. Existing
	// running instances are left alone even when the other fields differ: a
	// set's inputs never change. Instances that have ended are replaced. It returns when all processes have
	// been started. When one cannot be created the others run all the same, nothing is removed, and an
	// error says so; a process that starts and ends at once is no error of Apply but an instance in
	// state crashed.
	Apply(ctx context.Context, spec SetSpec) error

	// Remove stops and removes all instances of a set: TERM, StopGrace, KILL.
	// It is nil when there are none.
	Remove(ctx context.Context, key SetKey) error

	// Instances lists the instances of one app, or of all with app "", crashed
	// ones included. The order is by type, number, generation.
	Instances(ctx context.Context, app string) ([]Instance, error)

	// Watch sends the UUID of an app each time that one of its instances may have
	// changed, and "" when any app may have (after a lost connection, say). It
	// says that one should look, not what changed; several changes may be one
	// message. The channel is closed when ctx ends.
	Watch(ctx context.Context) <-chan string

	// Probe asks once whether an instance serves; nil means that it does.
	// The error says what was wrong in words for the user; it has code paas.Unavailable when the engine could not tell.
	Probe(ctx context.Context, inst Instance, check Check) error

	// Logs calls yield for the last lines of an app that q asks for, oldest first, of all its instances that
	// are or were. With q.Follow it then calls it with the zero LogLine, once, and goes on
	// with new lines until ctx ends. yield's error ends the call and is returned. Lines that begin with
	// "deis: " may be the engine's own: why a process ended, what is missing.
	Logs(ctx context.Context, app string, q LogQuery, yield func(LogLine) error) error

	// Run runs a one-off process to its end and returns its exit code. Nothing
	// of it remains when Run returns, also when ctx ends first; what cannot be removed then goes with
	// the next Run or Forget. One-offs of the app that an earlier client of the engine left behind when it died
	// have ended before the process starts; it fails where they cannot be ended.
	Run(ctx context.Context, job Job) (exitCode int, err error)

	// Room says how much memory there is for more instances of an app. It is what the
	// machine has at this moment: nothing is set aside.
	Room(ctx context.Context, app string) (Room, error)

	// Fetch makes the image of a process ready for an app, which may have to be pulled, and returns its
	// digest. A tag is looked up anew each time. With that digest in Process.Digest, Apply and Run use this
	// very image from then on, until Collect or Forget removes it. say gets lines for the user while it takes
	// long, one call at a time and none after the return.
	Fetch(ctx context.Context, app string, p Process, say func(string)) (digest string, err error)

	// Collect removes those images of an app that keep does not want. What an instance
	// runs from goes on: whoever keeps it must keep its image too.
	Collect(ctx context.Context, app string, keep func(Image) bool) error

	// Usage says what the engine keeps on the disk, by app.
	Usage(ctx context.Context) (Usage, error)

	// Forget removes all that the engine keeps for an app: instances, logs and
	// images. It is nil when there is nothing.
	Forget(ctx context.Context, app string) error
}

// SetKey identifies a set of instances with equal inputs.
type SetKey struct {
	App        string // app UUID
	Type       string // process type
	Generation int64
}

// SetSpec is what a set should be.
type SetSpec struct {
	SetKey
	Nums    []int
	Process Process
}

// Process is what one instance runs.
type Process struct {
	// AppID is the app's name; Version the release. With type and number they make the
	// name that users see, <app>_v<version>.<type>.<num>.
	AppID   string
	Version int
	// Image is a reference that the engine has or can pull; Digest, when known, pins it.
	Image  string
	Digest string
	// Registry is for pulling it.
	Registry Credentials
	// ReadOnly makes the image's files read-only; /tmp, /var/tmp and /run can be written to, and are
	// in memory.
	ReadOnly bool
	// Command replaces the image's command and entrypoint; nil keeps both.
	Command []string
	// Env is the config; it is secret. PORT is added unless it is set.
	Env map[string]string
	// Memory is in bytes, 0 for no limit. CPUShares is the relative weight,
	// 0 to 1024 (contract 5.2), 0 for the default.
	Memory    int64
	CPUShares int64
}

// Instance is what the engine knows of one instance.
type Instance struct {
	SetKey
	// ID names this very container; a replacement has another.
	ID      string
	Num     int
	AppID   string
	Version int
	State   paas.InstanceState
	// Address is host:port; empty unless State is up.
	Address string
	// Reason explains crashed and error, in words for the user.
	Reason string
	// Excused says that this instance is crashed because the engine did not start it, not
	// because its process ended, and that this is worth a warning only (contract 7, step 4). Engines that
	// run processes never set it: there, what does not start fails its rollout.
	Excused bool
	Started time.Time
}

// Room is memory, in bytes.
type Room struct {
	// Total is what all instances together may use, 0 when that is not known.
	// Available is what of it new ones can have without taking any from others.
	Total, Available int64
	// Use is what the largest running instance of each process type of the app
	// uses now. Types of which nothing runs are not in it.
	Use map[string]int64
}

// Image is one that the engine keeps for an app.
type Image struct {
	Name   string
	Digest string // "sha256:..."
	// Updated is when the name got this digest.
	Updated time.Time
}

// Usage is in bytes.
type Usage struct {
	// Images is the layers of all images, each once, whoever has them; base images and what
	// apps share count here only.
	Images int64
	Apps   map[string]AppUsage // by UUID
}

// AppUsage is what one app takes for itself.
type AppUsage struct {
	// Images is the layers that only images of this app have.
	Images int64
	Logs   int64
	// Written is the files that its instances and one-offs have written, until these are removed. It
	// may be some minutes old, and 0 while it is not known yet.
	Written int64
}

// Check says what healthy means.
type Check struct {
	// Path is asked with GET and must answer 200; with "" an open port is enough, and
	// for types that are not routed a running process.
	Path    string
	Timeout time.Duration
}

// MaxLogBytes bounds the text of past lines that one call of Logs holds in
// memory: there are fewer of them than were asked for when they are longer.
const MaxLogBytes = 16 << 20

// LogQuery says which lines of an app are wanted.
type LogQuery struct {
	// Lines is how many of the past ones: the last.
	Lines int
	// Type and Num narrow to one process type and, unless Num is 0, to its instances of that number.
	Type string
	Num  int
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on with new lines.
	Follow bool
}

// Wants reports whether a line matches Type, Num and Since.
func (q LogQuery) Wants(l LogLine) bool {
	return (q.Type == "" || q.Type == l.Type) && (q.Num == 0 || q.Num == l.Num) && !l.Time.Before(q.Since)
}

// LogLine is one line that an instance wrote.
type LogLine struct {
	Time time.Time
	Type string
	Num  int
	// Generation tells the instances of one type and number apart.
	Generation int64
	Stderr     bool
	Text       string // without newline
}

// Job is a one-off process.
type Job struct {
	App     string // app UUID
	Num     int
	Process Process
	// Stdin's end is passed on, but for a terminal's, where it must be typed; nil
	// is an empty one. A Read may go on after Run has returned: whoever gives it ends it.
	Stdin io.Reader
	// Stdout and Stderr get what the process writes; without Stderr, Stdout gets
	// both. There is one Write at a time to the two of them, and none once
	// Run has returned; so a Write must not outlast Run's context by much.
	Stdout, Stderr io.Writer
	// Log, unless its Type is empty, is the set under which the app's log keeps what the process
	// writes: as that of its instance Num. Without Stderr all of it counts as stdout.
	Log SetKey
	// Terminal, if there is one, is where the process reads and writes. Its
	// output goes to Stdout, line ends included as a terminal makes them.
	Terminal *Terminal
}

// Terminal describes a terminal that a process is given.
type Terminal struct {
	Size WindowSize
	// Resize carries the sizes that it has later. It may be nil and need not be closed.
	Resize <-chan WindowSize
}

// WindowSize is in characters.
type WindowSize struct{ Columns, Rows uint16 }
