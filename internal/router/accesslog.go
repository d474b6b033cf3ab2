package router

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// accessQueue is how many lines may wait for a slow sink: some tenths of a
	// second at full load. More are dropped and counted.
	accessQueue = 8192
	// accessBuffer gathers lines into one write while they come fast.
	accessBuffer = 64 << 10
	// accessPath is how much of a path is logged. Queries are not: they often
	// hold secrets.
	accessPath = 512
	// accessEnd is how long the end waits for the sink.
	accessEnd = 3 * time.Second
)

// accessLog writes one JSON line for each request, apart from the request's own
// goroutine: a slow sink costs lines, never answers.
type accessLog struct {
	lines   chan slog.Record
	dropped atomic.Uint64
}

func newAccessLog() *accessLog {
	return &accessLog{lines: make(chan slog.Record, accessQueue)}
}

// log queues the line of a request that ended.
func (l *accessLog) log(x *exchange, r *http.Request) {
	now := time.Now()
	record := slog.NewRecord(now, slog.LevelInfo, "request", 0)
	app, instance := "", ""
	if x.route != nil {
		app = x.route.conf.App
	}
	if x.served != nil {
		instance = x.served.conf.ID
	}
	record.AddAttrs(
		slog.String("app", app),
		slog.String("host", cut(r.Host, 255)),
		slog.String("method", cut(r.Method, 32)),
		slog.String("path", cut(r.URL.EscapedPath(), accessPath)),
		slog.Int("status", x.w.status),
		slog.Int64("bytes", x.w.bytes),
		slog.Float64("seconds", seconds(now.Sub(x.began))),
		slog.Float64("wait", x.wait()),
		slog.String("client", x.client),
		slog.String("scheme", x.scheme),
		slog.String("proto", r.Proto),
		slog.String("instance", instance),
		slog.Int("retries", x.retries),
		slog.String("id", x.id),
	)
	select {
	case l.lines <- record:
	default:
		l.dropped.Add(1)
	}
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// seconds with microseconds are as exact as a log needs.
func seconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }

// wait is the time until the app's answer began, in seconds; 0 without one.
func (x *exchange) wait() float64 {
	if x.reached.IsZero() {
		return 0
	}
	return seconds(x.reached.Sub(x.began))
}

// run writes the lines until ctx ends, and then those that wait.
func (l *accessLog) run(ctx context.Context, sink io.Writer) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.write(ctx, sink)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(accessEnd):
	}
}

func (l *accessLog) write(ctx context.Context, sink io.Writer) {
	out := bufio.NewWriterSize(sink, accessBuffer)
	handler := slog.NewJSONHandler(out, nil)
	put := func(r slog.Record) {
		if handler.Handle(ctx, r) != nil {
			l.dropped.Add(1)
			out.Reset(sink) // a bufio.Writer keeps its first error
		}
	}
	for {
		select {
		case r := <-l.lines:
			put(r)
			continue
		default:
		}
		if out.Flush() != nil {
			l.dropped.Add(1)
			out.Reset(sink)
		}
		select {
		case r := <-l.lines:
			put(r)
		case <-ctx.Done():
			if len(l.lines) == 0 {
				return
			}
		}
	}
}
