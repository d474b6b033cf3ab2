package drain_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deis/deis/internal/drain"
	"github.com/deis/deis/internal/hosttest"
)

var at = time.Date(2026, 11, 22, 17, 30, 0, 123456789, time.UTC)

func line(text string) drain.Line {
	return drain.Line{Time: at, App: "shop", Source: "web.1", Text: text}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"syslog://logs.example.com":        "syslog://logs.example.com:514",
		"udp://10.0.0.1:5000":              "syslog://10.0.0.1:5000",
		"tcp://[::1]":                      "tcp://[::1]:601",
		"syslog+tls://logs.example.com":    "tls://logs.example.com:6514",
		" tls://logs.example.com:1234/ ":   "tls://logs.example.com:1234",
		"":                                 "",
		"logs.example.com:514":             "",
		"https://logs.example.com":         "",
		"tcp://user:secret@example.com":    "",
		"tcp://example.com/path":           "",
		"tcp://example.com?token=secret":   "",
		"tcp://:601":                       "",
		"syslog://exa mple.com\x00:12/%zz": "",
	} {
		target, err := drain.Parse(text)
		if want == "" {
			if err == nil {
				t.Errorf("Parse(%q) = %s", text, target)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("Parse(%q): %v", text, err)
			}
			continue
		}
		if err != nil || target.String() != want {
			t.Errorf("Parse(%q) = %s, %v, want %s", text, target, err, want)
		}
	}
}

func run(t *testing.T, url string, config *tls.Config) *drain.Drain {
	t.Helper()
	target, err := drain.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, drain.New(target, drain.Options{TLS: config}))
}

func start(t *testing.T, d *drain.Drain) *drain.Drain {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { d.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within ten seconds: %s", what)
}

func TestUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	d := run(t, "syslog://"+server.LocalAddr().String(), nil)
	d.Send(line("hello there"))
	d.Send(drain.Line{Time: at, App: "shöp x", Source: "", Err: true, Text: strings.Repeat("ü", 40_000)})
	buf := make([]byte, 1<<17)
	n, _, _ := server.ReadFrom(buf)
	if got, want := string(buf[:n]), "<14>1 2026-11-22T17:30:00.123456Z shop deis web.1 - - hello there"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	n, _, _ = server.ReadFrom(buf)
	if got := string(buf[:n]); !strings.HasPrefix(got, "<11>1 2026-11-22T17:30:00.123456Z sh_p_x deis - - - ü") || !strings.HasSuffix(got, "ü...") || n > 65507 || n < 65500 {
		t.Errorf("got %d bytes, %.80q", n, got)
	}
}

// messages reads octet-counted frames (RFC 6587).
func messages(r io.Reader, out chan<- string) {
	b := bufio.NewReader(r)
	for {
		head, err := b.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(head))
		if err != nil {
			out <- "bad frame: " + head
			return
		}
		text := make([]byte, n)
		if _, err := io.ReadFull(b, text); err != nil {
			return
		}
		out <- string(text)
	}
}

// TestTCP: a server that goes away and comes back gets everything.
func TestTCP(t *testing.T) {
	addr := hosttest.Addr(t)
	server, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	d := run(t, "tcp://"+addr, nil)
	d.Send(line("one"))
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10)
	go messages(conn, got)
	if text := <-got; !strings.HasSuffix(text, " - - one") {
		t.Errorf("got %q", text)
	}
	conn.Close()
	server.Close()
	time.Sleep(time.Second) // the end of the connection is seen
	d.Send(line("two"))
	soon(t, "the error is known", func() bool { return d.Stats().Error != "" })
	if server, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if conn, err = server.Accept(); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go messages(conn, got)
	if text := <-got; !strings.HasSuffix(text, " - - two") {
		t.Errorf("got %q", text)
	}
	soon(t, "all is well", func() bool { return d.Stats() == drain.Stats{Sent: 2} })
}

// TestDrops: a drain that takes nothing costs neither time nor memory, and is
// told later what it missed.
func TestDrops(t *testing.T) {
	addr := hosttest.Addr(t)
	d := run(t, "tcp://"+addr, nil)
	began := time.Now()
	const count = 100_000
	for i := range count {
		d.Send(line(fmt.Sprint("line ", i)))
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("sending took %s", took)
	}
	dropped := d.Stats().Dropped
	if dropped == 0 {
		t.Fatal("nothing was dropped")
	}
	server, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make(chan string, count)
	go messages(conn, got)
	if text := <-got; !strings.HasSuffix(text, fmt.Sprintf(" shop deis deis-drain - - %d lines were dropped, because this drain did not take them in time", dropped)) {
		t.Errorf("first message %q", text)
	}
	if text := <-got; !strings.HasSuffix(text, " - - line 0") {
		t.Errorf("second message %q", text)
	}
	soon(t, "all that were kept are sent", func() bool { return d.Stats().Sent == count-dropped })
}

func TestTLS(t *testing.T) {
	https := httptest.NewUnstartedServer(nil) // for its certificate
	https.StartTLS()
	defer https.Close()
	server, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: https.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got := make(chan string, 1)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			go messages(conn, got)
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	trusting := run(t, "tls://"+server.Addr().String(), &tls.Config{RootCAs: roots})
	trusting.Send(line("secret enough"))
	if text := <-got; !strings.HasSuffix(text, " - - secret enough") {
		t.Errorf("got %q", text)
	}
	wary := run(t, "tls://"+server.Addr().String(), nil)
	wary.Send(line("to a stranger"))
	soon(t, "a certificate that nobody signed is refused", func() bool { return strings.Contains(wary.Stats().Error, "certificate") })
}

// TestControl: an address that is refused gets nothing, by whatever transport, and the reason is told.
func TestControl(t *testing.T) {
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, url := range []string{"syslog://" + packets.LocalAddr().String(), "tcp://" + stream.Addr().String(), "tls://" + stream.Addr().String()} {
		target, err := drain.Parse(url)
		if err != nil {
			t.Fatal(err)
		}
		d := start(t, drain.New(target, drain.Options{Control: func(_, address string, _ syscall.RawConn) error {
			return errors.New("not to " + address)
		}}))
		d.Send(line("to nobody"))
		soon(t, "the refusal is told", func() bool { return d.Stats().Error != "" })
		_, address, _ := strings.Cut(url, "://")
		if st := d.Stats(); st.Sent != 0 || !strings.HasSuffix(st.Error, "not to "+address) {
			t.Errorf("%s: %+v", url, st)
		}
	}
	stream.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
	if conn, err := stream.Accept(); err == nil {
		t.Errorf("a connection came from %s", conn.RemoteAddr())
	}
	packets.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := packets.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("a message of %d bytes came", n)
	}
}

// TestUnsent: what waits is known, and what was sent is not among it.
func TestUnsent(t *testing.T) {
	addr := hosttest.Addr(t)
	d := run(t, "tcp://"+addr, nil)
	d.Send(drain.Line{Time: at, Text: "one", ID: 1})
	d.Send(drain.Line{Time: at.Add(time.Second), Text: "two", ID: 2})
	soon(t, "the error is known", func() bool { return d.Stats().Error != "" })
	var ids []int64
	if n := d.Unsent(func(l drain.Line) { ids = append(ids, l.ID) }); n != 2 || !slices.Equal(ids, []int64{1, 2}) {
		t.Errorf("%d lines wait: %v", n, ids)
	}
	server, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	soon(t, "all are sent", func() bool { return d.Stats().Sent == 2 })
	if n := d.Unsent(func(l drain.Line) { t.Errorf("%q waits", l.Text) }); n != 0 {
		t.Errorf("%d lines wait", n)
	}
}
