package containerd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/containerdtest"
	"github.com/deis/deis/internal/engine/enginetest"
)

const testImage = "deis.internal/apps/test:git-0123456789ab"

// sh is a command that ends on TERM, also as process 1.
func sh(script string) []string {
	return []string{"/bin/sh", "-c", "trap 'exit 0' TERM; " + script}
}

var (
	serveCmd = sh(`httpd -f -p "$PORT" -h /www & wait`)
	sleepCmd = sh(`sleep 10000 & wait`)
)

// bench is a platform on a containerd.
type bench struct {
	*Engine
	t      testing.TB
	daemon *containerdtest.Daemon
	opts   Options
	client interface {
		SnapshotService(string) snapshots.Snapshotter
	}
	digest string
}

func newBench(t testing.TB, daemon *containerdtest.Daemon) *bench {
	t.Helper()
	id := make([]byte, 3)
	rand.Read(id)
	platform := hex.EncodeToString(id)
	b := &bench{t: t, daemon: daemon, client: daemon.Client(), opts: Options{
		Address:    daemon.Address,
		Root:       filepath.Join(daemon.Dir, platform),
		PlatformID: platform,
		ShimLog:    logProgram,
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	b.digest = daemon.Import("deis-"+platform, containerdtest.Image{
		Name:  testImage,
		Files: map[string]string{"www/ok": "ok\n"},
	}).String()
	b.open()
	t.Cleanup(func() {
		if err := errors.Join(b.Leave(context.Background()), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.Engine, err = New(b.opts); err != nil {
		b.t.Fatal(err)
	}
}

// leftovers lists what is there of an app, or (app "") of all that is no more.
func (b *bench) leftovers(app string) (found []string) {
	ctx := namespaces.WithNamespace(context.Background(), b.ns)
	type thing struct{ what, id string }
	var things []thing
	add := func(what string, ids []string, err error) {
		for _, id := range ids {
			things = append(things, thing{what, id})
		}
		if err != nil {
			found = append(found, err.Error())
		}
	}
	// Other tests make and remove instances right now: what is known before or after is theirs.
	known := b.known(ctx)
	for id, of := range known {
		if of == app && app != "" {
			found = append(found, "container "+id)
		}
	}
	for what, dir := range map[string]string{"directory": b.instancesDir(), "namespace": b.netnsDir()} {
		entries, err := os.ReadDir(dir)
		for _, entry := range entries {
			add(what, []string{entry.Name()}, nil)
		}
		add(what, nil, err)
	}
	members, err := b.network.Members()
	add("address of", members, err)
	add("snapshot", nil, b.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		add("snapshot", []string{info.Name}, nil)
		return nil
	}))
	maps.Copy(known, b.known(ctx))
	for _, t := range things {
		if _, ok := known[t.id]; !ok && validID.MatchString(t.id) {
			found = append(found, t.what+" "+t.id)
		}
	}
	return found
}

// known are the containers that there are or are being made, with their apps.
func (b *bench) known(ctx context.Context) map[string]string {
	b.t.Helper()
	known := map[string]string{}
	for _, kind := range []string{kindInstance, kindJob} {
		list, err := b.records(ctx, "", kind)
		if err != nil {
			b.t.Error(err)
		}
		for _, r := range list {
			known[r.ID] = r.App
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, n := range b.notes {
		known[id] = n.app
	}
	return known
}

// logProgram is the path of deis-shimlog, made once for all tests.
var logProgram string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "shimlog")
		if err == nil {
			defer os.RemoveAll(dir)
			logProgram, err = containerdtest.BuildShimLog(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func newDaemonAndBench(t testing.TB) *bench {
	return newBench(t, containerdtest.Start(t))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	enginetest.Run(t, func(*testing.T) engine.Engine { return b.Engine }, enginetest.Fixture{
		Image: testImage, Digest: b.digest,
		MissingImage: "deis.internal/apps/none:git-0123456789ab",
		Serve:        sh(`echo no > /www/x; httpd -f -p "$PORT" -h /www & wait`),
		Lines:        sh(`i=1; while [ $i -le 50 ]; do echo line $i; i=$((i+1)); done; echo "$GREETING"; echo oops >&2; sleep 10000 & wait`),
		Crash:        sh(`echo last words; exit 3`),
		Short:        sh(`sleep 0.5; exit 0`),
		Job:          sh(`echo "$GREETING"; cat; echo oops >&2; exit 3`),
		Terminal:     []string{"/bin/sh", "-c", `[ -t 0 ] && [ -t 1 ] && [ -t 2 ] || exit 5; while read -r line; do [ "$line" = end ] && exit 4; stty size; done`},
		Sleep:        sleepCmd,
		Measures:     true,
		Leftovers:    b.leftovers,
	})
	if t.Failed() {
		text, _ := os.ReadFile(filepath.Join(b.daemon.Dir, "log"))
		t.Logf("containerd: %s", last(string(text), 20))
	}
}

func last(text string, n int) string {
	lines := strings.Split(text, "\n")
	return fmt.Sprint(strings.Join(lines[max(0, len(lines)-n):], "\n"))
}
