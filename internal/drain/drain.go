// Package drain sends log lines to syslog servers (RFC 5424): over UDP
// (RFC 5426), TCP (RFC 6587, octet counting) or TLS (RFC 5425).
package drain

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// queueLines and queueBytes bound what waits for one drain. More is dropped and counted:
	// a drain that is slow or down must not cost the platform memory, nor hold up the app.
	queueLines = 20_000
	queueBytes = 8 << 20
	// maxUDP is the payload of the largest UDP datagram, maxStream that of the
	// largest message over TCP (contract 12).
	maxUDP    = 65507
	maxStream = 1 << 20

	dialTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	minRetry     = time.Second
	maxRetry     = time.Minute
	// batch is how many messages one write may hold.
	batch = 256

	// priority is facility user (1), severity info (6); priorityErr severity error (3).
	priority, priorityErr = 1*8 + 6, 1*8 + 3
	timeLayout            = "2006-01-02T15:04:05.000000Z07:00"
	cutMark               = "..."
)

// Target is where lines go.
type Target struct {
	network string // "udp", "tcp" or "tls"
	address string // host:port
	host    string
}

// Parse reads a drain's URL: syslog://HOST[:514] or udp:// for UDP, tcp://HOST[:601]
// (also syslog+tcp://), tls://HOST[:6514] (also syslog+tls://). Credentials, paths and
// queries are refused: syslog has none.
func Parse(text string) (Target, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return Target{}, errors.New("a log drain looks like syslog://logs.example.com:514, tcp://... or tls://...")
	}
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return Target{}, errors.New("a log drain has a scheme, a host and a port, and nothing else")
	}
	t := Target{host: u.Hostname()}
	port := u.Port()
	switch u.Scheme {
	case "syslog", "udp", "syslog+udp":
		t.network, port = "udp", either(port, "514")
	case "tcp", "syslog+tcp":
		t.network, port = "tcp", either(port, "601")
	case "tls", "syslog+tls":
		t.network, port = "tls", either(port, "6514")
	default:
		return Target{}, fmt.Errorf("log drains speak syslog, tcp or tls, not %q", u.Scheme)
	}
	t.address = net.JoinHostPort(t.host, port)
	return t, nil
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// String is the URL with its port.
func (t Target) String() string {
	scheme := t.network
	if scheme == "udp" {
		scheme = "syslog"
	}
	return scheme + "://" + t.address
}

// Line is one message.
type Line struct {
	Time time.Time
	// App is RFC 5424's HOSTNAME, Source ("web.1") its PROCID.
	App, Source string
	Err         bool // written to stderr
	Text        string
	// ID is the caller's, for Unsent.
	ID int64
}

// Stats is what became of the lines so far.
type Stats struct {
	Sent, Dropped int64
	// Error is why the drain cannot be reached; empty while it can.
	Error string
}

// Options of a drain. The zero value reaches every address, and trusts whom the system trusts.
type Options struct {
	TLS *tls.Config
	// Control is a net.Dialer's: it may refuse the address that a host's name turned out to be.
	Control func(network, address string, conn syscall.RawConn) error
}

// Drain sends lines to one target. Its methods may be called concurrently.
type Drain struct {
	target Target
	opts   Options
	more   chan struct{} // capacity 1

	mu      sync.Mutex
	queue   []Line
	sending []Line // taken from the queue, and maybe not sent
	bytes   int
	lost    int64 // dropped and not told yet
	stats   Stats
}

// New returns a drain that queues until Run is called.
func New(target Target, opts Options) *Drain {
	return &Drain{target: target, opts: opts, more: make(chan struct{}, 1)}
}

// Send queues a line. It never waits: where there is no room the line is
// dropped, which is counted, and told to the drain when it takes lines again.
func (d *Drain) Send(l Line) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) >= queueLines || d.bytes+len(l.Text) > queueBytes {
		d.stats.Dropped++
		d.lost++
		return
	}
	d.queue = append(d.queue, l)
	d.bytes += len(l.Text)
	select {
	case d.more <- struct{}{}:
	default:
	}
}

// Stats returns what became of the lines so far.
func (d *Drain) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Unsent calls f with each line that waits or is on its way, and returns how many there are. f must be short:
// nothing is queued or sent meanwhile.
func (d *Drain) Unsent(f func(Line)) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, lines := range [][]Line{d.sending, d.queue} {
		for _, l := range lines {
			f(l)
		}
	}
	return len(d.sending) + len(d.queue)
}

// Run sends what is queued until ctx ends, connecting again with a growing
// pause when the target is gone.
func (d *Drain) Run(ctx context.Context) {
	pause := minRetry
	for ctx.Err() == nil {
		sent, err := d.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if sent {
			pause = minRetry
		}
		d.mu.Lock()
		d.stats.Error = err.Error()
		d.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxRetry)
	}
}

// session sends over one connection until it breaks.
func (d *Drain) session(ctx context.Context) (sent bool, err error) {
	if !d.await(ctx) {
		return false, ctx.Err()
	}
	conn, err := d.dial(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	gone := watch(conn, d.target.network)
	for d.await(ctx) {
		select {
		case <-gone:
			return sent, fmt.Errorf("%s closed the connection", d.target)
		default:
		}
		lines, lost := d.take()
		n, err := d.write(conn, lines, lost)
		d.done(lines[n:], int64(n), lost, err)
		if err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, ctx.Err()
}

// watch reads from a connection that should stay silent; its channel is closed
// when the other side ends it. TCP takes the first write after that without an error.
func watch(conn net.Conn, network string) <-chan struct{} {
	gone := make(chan struct{})
	if network == "udp" {
		return gone
	}
	go func() {
		defer close(gone)
		var buf [512]byte
		for {
			if _, err := conn.Read(buf[:]); err != nil {
				return
			}
		}
	}()
	return gone
}

// await waits until something is queued; it is false when ctx ended first.
func (d *Drain) await(ctx context.Context) bool {
	for {
		d.mu.Lock()
		n := len(d.queue)
		d.mu.Unlock()
		if n > 0 {
			return ctx.Err() == nil
		}
		select {
		case <-d.more:
		case <-ctx.Done():
			return false
		}
	}
}

func (d *Drain) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := &net.Dialer{Control: d.opts.Control}
	if d.target.network == "tls" {
		config := d.opts.TLS.Clone()
		if config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		config.ServerName = d.target.host
		return (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", d.target.address)
	}
	return dialer.DialContext(ctx, d.target.network, d.target.address)
}

// take takes some lines from the queue, and how many were lost before them.
func (d *Drain) take() ([]Line, int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(batch, len(d.queue))
	lines := append([]Line(nil), d.queue[:n]...)
	d.queue = d.queue[n:]
	for _, l := range lines {
		d.bytes -= len(l.Text)
	}
	if len(d.queue) == 0 {
		d.queue = nil // gives back the memory of a burst
	}
	d.sending = lines
	lost := d.lost
	d.lost = 0
	return lines, lost
}

// done counts a write, and puts back what it did not send.
func (d *Drain) done(unsent []Line, sent, lost int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sending = nil
	d.stats.Sent += sent
	if err == nil {
		d.stats.Error = ""
		return
	}
	d.queue = append(append([]Line(nil), unsent...), d.queue...)
	for _, l := range unsent {
		d.bytes += len(l.Text)
	}
	d.lost += lost
}

// write sends lines and returns how many went.
func (d *Drain) write(conn net.Conn, lines []Line, lost int64) (int, error) {
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	if lost > 0 && len(lines) > 0 {
		first := lines[0]
		note := Line{Time: time.Now(), App: first.App, Source: "deis-drain", Err: true, Text: fmt.Sprintf("%d lines were dropped, because this drain did not take them in time", lost)}
		if _, err := conn.Write(d.frame(nil, note)); err != nil {
			return 0, err
		}
	}
	if d.target.network == "udp" {
		for i, l := range lines {
			if _, err := conn.Write(d.frame(nil, l)); err != nil {
				return i, err
			}
		}
		return len(lines), nil
	}
	var buf []byte
	for _, l := range lines {
		buf = d.frame(buf, l)
	}
	if _, err := conn.Write(buf); err != nil {
		return 0, err // some may have come: twice is better than never
	}
	return len(lines), nil
}

// frame appends a message as the transport wants it.
func (d *Drain) frame(buf []byte, l Line) []byte {
	if d.target.network == "udp" {
		return append(buf, cut(message(l), maxUDP)...)
	}
	text := cut(message(l), maxStream)
	return append(fmt.Appendf(buf, "%d ", len(text)), text...)
}

// message is RFC 5424's: header, no structured data, text.
func message(l Line) string {
	pri := priority
	if l.Err {
		pri = priorityErr
	}
	return fmt.Sprintf("<%d>1 %s %s %s %s - - %s", pri, l.Time.UTC().Format(timeLayout), word(l.App, 255), "deis", word(l.Source, 128), l.Text)
}

// word is a field of the header: printable ASCII without blanks, or "-".
func word(s string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if clean == "" {
		return "-"
	}
	return clean[:min(len(clean), limit)]
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len(cutMark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + cutMark
}
