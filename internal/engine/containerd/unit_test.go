package containerd

import (
	"errors"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

func TestChoosePort(t *testing.T) {
	exposed := func(list ...string) ocispec.ImageConfig {
		set := map[string]struct{}{}
		for _, p := range list {
			set[p] = struct{}{}
		}
		return ocispec.ImageConfig{ExposedPorts: set}
	}
	for _, c := range []struct {
		env  string
		img  ocispec.ImageConfig
		want int // 0 for an error
	}{
		{"", exposed(), 5000},
		{"", exposed("8080/tcp", "80/tcp", "443"), 80},
		{"", exposed("53/udp"), 5000},
		{"", exposed("53/udp", "9000"), 9000},
		{"", exposed("junk/tcp", "0/tcp", "70000/tcp"), 5000},
		{"3000", exposed("80/tcp"), 3000},
		{"0", exposed(), 0},
		{"65536", exposed(), 0},
		{"-1", exposed(), 0},
		{"http", exposed(), 0},
	} {
		got, err := choosePort(map[string]string{"PORT": c.env}, c.img)
		if got != c.want || (err != nil) != (c.want == 0) || err != nil && paas.CodeOf(err) != paas.Invalid {
			t.Errorf("PORT %q, exposed %v: %d, %v, want %d", c.env, c.img.ExposedPorts, got, err, c.want)
		}
	}
}

func TestStartFailure(t *testing.T) {
	const prefix = "create container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for text, want := range map[string]string{
		prefix + `exec: "x": executable file not found in $PATH: unknown`:                            `cannot start: exec: "x": executable file not found in $PATH`,
		prefix + `error during container init: exec: "x": permission denied: unknown`:                `cannot start: exec: "x": permission denied`,
		prefix + `chdir to cwd ("/srv") set in config.json failed: permission denied: unknown`:       `cannot start: chdir to cwd ("/srv") set in config.json failed: permission denied`,
		prefix + `container init was OOM-killed (memory limit too low?): unknown`:                    "cannot start: its memory limit is too low",
		prefix + `error setting rlimits for ready process: operation not permitted: unknown`:         "",
		prefix + `error mounting "/x" to rootfs at "/etc/hosts": no such file or directory: unknown`: "",
		"create container: connection error: desc = transport: exec: something else":                 "",
	} {
		if got := startFailure(errors.New(text)); got != want {
			t.Errorf("%s:\ngot  %q\nwant %q", text, got, want)
		}
	}
	if got := startFailure(nil); got != "" {
		t.Errorf("no error: %q", got)
	}
}

func TestHostname(t *testing.T) {
	for processType, want := range map[string]string{
		"web": "web-7", "Web_Worker": "web-worker-7", "a/../b": "a-b-7",
		"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-7",
	} {
		if got := hostname(record{SetKey: engine.SetKey{Type: processType}, Num: 7}); got != want {
			t.Errorf("%s: %s, want %s", processType, got, want)
		}
	}
}

func FuzzLogName(f *testing.F) {
	for _, s := range []string{"web", "", "a/../b.c", "..", "%2F", "ü\x00"} {
		f.Add(s, 1, int64(2))
	}
	f.Fuzz(func(t *testing.T, processType string, num int, generation int64) {
		name := logName(engine.SetKey{Type: processType, Generation: generation}, num)
		for _, c := range []byte(name) {
			if c == '/' || c < ' ' || c > '~' {
				t.Errorf("%q is no file name", name)
			}
		}
		gotType, gotNum, gotGeneration, ok := parseLogName(name)
		if !ok || gotType != processType || gotNum != num || gotGeneration != generation {
			t.Errorf("%q is read as %q, %d, %d, %v", name, gotType, gotNum, gotGeneration, ok)
		}
	})
}
