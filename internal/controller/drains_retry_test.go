package controller

import (
	"context"
	"log/slog"
	"testing"
)

// told is a log that says that there is something in it.
type told chan struct{}

func (c told) Write(p []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(p), nil
}

// TestDrainsAreRetried: configs that could not be read are read again, though nobody does anything.
func TestDrainsAreRetried(t *testing.T) {
	t.Parallel() // it waits for drainRetry
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":"syslog://`+drainHost+`:9"}}`)
	shop := appUUID(t, p, "shop")
	failed := make(told, 1)
	d, err := newDrains(&server{
		cfg: Config{Root: p.dir, Log: slog.New(slog.NewTextHandler(failed, nil))}, store: p.s.store, engine: p.engine,
	})
	if err != nil {
		t.Fatal(err)
	}
	restore := p.without("configs")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	<-failed
	restore()
	eventually(t, "the app has its drain", func() bool { return len(d.of(shop)) == 1 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
