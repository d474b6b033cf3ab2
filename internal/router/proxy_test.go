package router

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/routerconf"
)

func TestPages(t *testing.T) {
	r := serve(t, routerconf.Table{Routes: []routerconf.Route{
		routeTo("up.test", "up", addrOf(named(t, "up"))),
		routeTo("none.test", "none"),
		routeTo("refusing.test", "refusing", hosttest.Addr(t), hosttest.Addr(t)),
		{Host: "deis.test", App: "deis", Controller: true, Targets: routeTo("", "", hosttest.Addr(t)).Targets},
	}})
	for _, c := range []struct {
		host   string
		status int
		text   string
	}{
		{"up.test", 200, "up"},
		{"UP.Test.:80", 200, "up"},
		{"unknown.test", 404, "no app at this address"},
		{"none.test", 503, "no instance of it is running"},
		{"refusing.test", 502, "does not accept connections"},
		{"deis.test", 503, "controller is not running"},
	} {
		for _, accept := range []string{"*/*", "text/html,application/xhtml+xml"} {
			for _, scheme := range []string{"http", "https"} {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", scheme+"://"+strings.ToLower(strings.TrimSuffix(c.host, ":80")), nil)
				req.Host = c.host
				req.Header.Set("Accept", accept)
				resp, err := r.client(t).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != c.status || !strings.Contains(string(body), c.text) {
					t.Errorf("%s %s: %s %s", scheme, c.host, resp.Status, body)
				}
				if c.status == 200 {
					continue
				}
				wantType := "text/plain; charset=utf-8"
				if accept != "*/*" {
					wantType = "text/html; charset=utf-8"
				}
				id := resp.Header.Get("X-Request-Id")
				if got := resp.Header.Get("Content-Type"); got != wantType || id == "" || !strings.Contains(string(body), id) {
					t.Errorf("%s: type %q, id %q, body %s", c.host, got, id, body)
				}
				if (resp.Header.Get("Retry-After") != "") != (c.status == 503) {
					t.Errorf("%s: Retry-After %q", c.host, resp.Header.Get("Retry-After"))
				}
				if strings.Contains(string(body), "127.0.0.1") {
					t.Errorf("%s: the page shows an address: %s", c.host, body)
				}
			}
		}
	}
	resp, body := fetch(t, r.client(t), "http://balancer.test/health-check")
	if resp.StatusCode != 200 || body != "" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("health-check: %s %q", resp.Status, body)
	}
	head, err := r.client(t).Head("http://unknown.test/")
	if err != nil || head.StatusCode != 404 {
		t.Errorf("HEAD: %v %v", head, err)
	}
	if a := r.raw(t, "CONNECT up.test:443 HTTP/1.1\r\nHost: up.test:443\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(a, "HTTP/1.1 405") {
		t.Errorf("CONNECT: %s", a)
	}
}

func TestUnknownHostBeforeTheFirstTable(t *testing.T) {
	root := rootWithKey(t)
	r := start(t, Config{Root: root, ControllerURL: "http://" + hosttest.Addr(t)})
	resp, body := fetch(t, r.client(t), "http://a.test/")
	if resp.StatusCode != 503 || !strings.Contains(body, "starting") {
		t.Errorf("%s %s", resp.Status, body)
	}
	if r.health() == nil {
		t.Error("healthy without a table")
	}
}

// seenHeaders serves a request and returns what the instance got.
func seenHeaders(t *testing.T, trusted string, https bool, edit func(*http.Request)) *http.Request {
	t.Helper()
	var got *http.Request
	b := backend(t, func(_ http.ResponseWriter, r *http.Request) { got = r })
	r := serve(t, oneRoute("a.test", addrOf(b)), func(c *Config) { c.TrustedProxies = trusted })
	scheme := "http"
	if https {
		scheme = "https"
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", scheme+"://a.test/", nil)
	edit(req)
	resp, err := r.client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got == nil {
		t.Fatalf("nothing reached the instance: %s", resp.Status)
	}
	return got
}

func TestForwardedHeaders(t *testing.T) {
	spoof := func(r *http.Request) {
		r.Host = "A.test:8443"
		for name, v := range map[string]string{
			"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "1", "X-Forwarded-Ssl": "on",
			"X-Forwarded-Host": "evil.test", "Forwarded": "for=6.6.6.6", "X-Real-Ip": "6.6.6.6", "Proxy": "evil:1", "X-Request-Id": "bad id",
		} {
			r.Header.Set(name, v)
		}
		r.Header["X_Forwarded_For"] = []string{"6.6.6.6"}
		r.Header["x_forwarded_host"] = []string{"evil.test"}
		r.Header["X_Other"] = []string{"kept"}
		r.Header.Set("Connection", "X-Forwarded-For, X-Custom")
		r.Header.Set("X-Custom", "hop")
		r.Header.Set("Keep-Alive", "1")
	}
	got := seenHeaders(t, "", false, spoof)
	h := got.Header
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "80", "X-Forwarded-Ssl": "off",
		"X-Forwarded-Host": "", "Forwarded": "", "X-Real-Ip": "", "Proxy": "", "X-Custom": "", "Keep-Alive": "", "Accept-Encoding": "",
	} {
		if h.Get(name) != want || len(h[name]) > 1 {
			t.Errorf("%s: %q, want %q", name, h[name], want)
		}
	}
	if got.Host != "A.test:8443" {
		t.Errorf("Host %q", got.Host)
	}
	for name, kept := range map[string]bool{"X_Forwarded_For": false, "X_forwarded_host": false, "X_other": true} {
		if (h[name] != nil) != kept {
			t.Errorf("names with underscores: %v", h)
		}
	}
	if id := h.Get("X-Request-Id"); len(id) != 32 {
		t.Errorf("request id %q", id)
	}
	if _, ok := h["User-Agent"]; !ok {
		t.Error("User-Agent lost")
	}

	h = seenHeaders(t, "", true, func(r *http.Request) { r.Header.Set("X-Request-Id", "abc-123") }).Header
	if h.Get("X-Forwarded-Proto") != "https" || h.Get("X-Forwarded-Port") != "443" || h.Get("X-Forwarded-Ssl") != "on" || h.Get("X-Request-Id") != "abc-123" {
		t.Errorf("over TLS: %v", h)
	}

	h = seenHeaders(t, "10.0.0.0/8, 127.0.0.1", false, func(r *http.Request) {
		r.Header.Set("X-Forwarded-For", "6.6.6.6, 1.2.3.4, 10.1.1.1")
		r.Header.Set("X-Forwarded-Proto", "http, https")
		r.Header.Set("X-Forwarded-Host", "www.test")
	}).Header
	for name, want := range map[string]string{
		"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "443", "X-Forwarded-Host": "www.test",
	} {
		if h.Get(name) != want || len(h[name]) != 1 {
			t.Errorf("behind a trusted proxy %s: %q, want %q", name, h[name], want)
		}
	}
}

func TestBadTrustedProxies(t *testing.T) {
	_, err := newRouter(Config{TrustedProxies: "10.0.0.0/8,nonsense"})
	if err == nil || !strings.Contains(err.Error(), "nonsense") || !strings.Contains(err.Error(), "DEIS_TRUSTED_PROXIES") {
		t.Errorf("error %v", err)
	}
}

func TestTargetPassesUnchanged(t *testing.T) {
	b := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) }))
	b.Config.DisableGeneralOptionsHandler = true
	b.Start()
	t.Cleanup(b.Close)
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for _, target := range []string{
		"/", "/a/../b", "/a//b/./c", "/%2e%2e/%2F?x=%zz", "/a|b^`{}\"", "/q?a=1;b=2", "/q?", "//a/b", "/?a&b=&=", "/%41", "/ü",
	} {
		a := r.raw(t, "GET "+target+" HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		_, body, _ := strings.Cut(a, "\r\n\r\n")
		if strings.Contains(strings.ToLower(a), "transfer-encoding: chunked") || body != target {
			t.Errorf("%q came as %q\n%s", target, body, a)
		}
	}
	if a := r.raw(t, "OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"); !strings.HasSuffix(a, "\r\n\r\n*") {
		t.Errorf("OPTIONS *: %s", a)
	}
	if a := r.raw(t, "GET http://a.test/abs?x HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n"); !strings.HasSuffix(a, "/abs?x") {
		t.Errorf("absolute form: %s", a)
	}
}

func TestHTTP10(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // chunked
		fmt.Fprint(w, "body")
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	a := r.raw(t, "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
	if !strings.HasSuffix(a, "\r\n\r\nbody") || strings.Contains(a, "chunked") {
		t.Errorf("%q", a)
	}
}

func TestSmuggling(t *testing.T) {
	var paths atomic.Pointer[[]string]
	b := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for {
			old := paths.Load()
			var now []string
			if old != nil {
				now = slices.Clone(*old)
			}
			now = append(now, r.URL.Path)
			if paths.CompareAndSwap(old, &now) {
				return
			}
		}
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for name, request := range map[string]string{
		"two lengths":      "POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"bad length":       "POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: +5\r\n\r\nhello",
		"bad coding":       "POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"two codings":      "POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"space in name":    "GET /a HTTP/1.1\r\nHost: a.test\r\nX-A : b\r\n\r\n",
		"two hosts":        "GET /a HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
		"no host":          "GET /a HTTP/1.1\r\n\r\n",
		"folded line":      "GET /a HTTP/1.1\r\nHost: a.test\r\n X: b\r\n\r\n",
		"control in path":  "GET /a\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"zero byte":        "GET /a HTTP/1.1\r\nHost: a.test\r\nX: a\x00b\r\n\r\n",
		"unknown protocol": "GET /a HTTP/3.0\r\nHost: a.test\r\n\r\n",
	} {
		a := r.raw(t, request)
		if !strings.HasPrefix(a, "HTTP/1.1 4") && !strings.HasPrefix(a, "HTTP/1.1 5") || strings.Count(a, "HTTP/1.1 ") != 1 {
			t.Errorf("%s: %q", name, a)
		}
	}
	if p := paths.Load(); p != nil {
		t.Errorf("reached the instance: %q", *p)
	}
	// A length beside chunks never reaches the instance, and what follows is a
	// request of its own here as there.
	r.raw(t, "POST /one HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+
		"GET /two HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	if p := paths.Load(); p != nil && slices.Compare(*p, []string{"/one", "/two"}) != 0 && slices.Compare(*p, []string{"/one"}) != 0 {
		t.Errorf("length and chunks: %q", *p)
	}
	// A body that breaks off in the middle is the client's fault.
	if a := r.raw(t, "POST /three HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n"); !strings.HasPrefix(a, "HTTP/1.1 400") {
		t.Errorf("bad chunk: %q", a)
	}
}

func TestStreaming(t *testing.T) {
	release := make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "10")
		}
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-release
		_, _ = io.WriteString(w, "later")
	})
	defer func() {
		select {
		case <-release:
		default:
			close(release)
		}
	}()
	r := serve(t, oneRoute("a.test", addrOf(b)))
	var bodies []io.ReadCloser
	for _, url := range []string{"http://a.test/", "https://a.test/", "http://a.test/known", "https://a.test/known"} {
		resp, err := r.client(t).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		part := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, part); err != nil || string(part) != "first" {
			t.Fatalf("%s: %q %v", url, part, err)
		}
		bodies = append(bodies, resp.Body)
	}
	close(release)
	for _, body := range bodies {
		if rest, err := io.ReadAll(body); err != nil || string(rest) != "later" {
			t.Errorf("%q %v", rest, err)
		}
	}
}

func TestRequestStreaming(t *testing.T) {
	// The instance answers each piece before the next one comes.
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 5)
		for {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				return
			}
			_, _ = w.Write(bytes.ToUpper(buf))
			w.(http.Flusher).Flush()
		}
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	in, out := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://a.test/", in) // HTTP/2: both directions at once
	resp, err := r.client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 5)
	for _, piece := range []string{"hello", "world"} {
		if _, err := io.WriteString(out, piece); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != strings.ToUpper(piece) {
			t.Fatalf("%q %v", buf, err)
		}
	}
	out.Close()
}

func TestLargeUploadAndDownload(t *testing.T) {
	const size = 24 << 20
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(h, w), r.Body)
		if n != size || err != nil {
			t.Errorf("upload: %d bytes, %v", n, err)
		}
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for _, scheme := range []string{"http", "https"} {
		sent, got := sha256.New(), sha256.New()
		body := io.TeeReader(io.LimitReader(endless{}, size), sent)
		req, _ := http.NewRequestWithContext(t.Context(), "PUT", scheme+"://a.test/", body)
		req.ContentLength = size
		resp, err := r.client(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(got, resp.Body)
		resp.Body.Close()
		if n != size || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Errorf("%s: %d bytes back, %v", scheme, n, err)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	return len(p), nil
}

func TestTrailersAndInformationalAnswers(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, r.Trailer.Get("X-Up"))
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for _, scheme := range []string{"http", "https"} {
		var hints []int
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if h.Get("Link") != "" {
					hints = append(hints, code)
				}
				return nil
			},
		})
		req, _ := http.NewRequestWithContext(ctx, "POST", scheme+"://a.test/", io.NopCloser(strings.NewReader("body")))
		req.ContentLength = -1
		req.Trailer = http.Header{"X-Up": {"sent"}}
		resp, err := r.client(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "sent" || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
			t.Errorf("%s: body %q, trailers %v", scheme, body, resp.Trailer)
		}
		if !slices.Equal(hints, []int{103}) {
			t.Errorf("%s: hints %v", scheme, hints)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	c, err := net.Dial("tcp", r.httpAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	lines := bufio.NewReader(c)
	fmt.Fprint(c, "POST /yes HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := lines.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("%q", line)
	}
	_, _ = lines.ReadString('\n')
	fmt.Fprint(c, "body")
	resp, err := http.ReadResponse(lines, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "body" {
		t.Errorf("%q", body)
	}
	fmt.Fprint(c, "POST /no HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := lines.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 403") {
		t.Errorf("%q", line)
	}
}

// A 100 that nobody asked for is not passed on; one that was asked for comes
// once, from the server.
func TestUnaskedContinue(t *testing.T) {
	l := listen(t)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	r := serve(t, oneRoute("a.test", l.Addr().String()))
	a := r.raw(t, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(a, "HTTP/1.1 200") {
		t.Errorf("%q", a)
	}
}

func TestNothingIsAdded(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header()["Date"] = nil
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		fmt.Fprint(w, "<html>")
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	resp, _ := fetch(t, r.client(t), "http://a.test/")
	if resp.Header["Content-Type"] != nil || len(resp.Header["Set-Cookie"]) != 2 || resp.Header["X-Hop"] != nil {
		t.Errorf("%v", resp.Header)
	}
}

func TestAbortedAnswerLooksAborted(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for _, scheme := range []string{"http", "https"} {
		resp, err := r.client(t).Get(scheme + "://a.test/")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: a broken answer ends like a whole one", scheme)
		}
		resp.Body.Close()
	}
}

func TestClientThatLeavesCancels(t *testing.T) {
	began, cancelled := make(chan struct{}), make(chan struct{})
	b := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(cancelled)
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://a.test/", nil)
	if _, err := r.client(t).Do(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the instance still works for nobody")
	}
}

func TestRetryOnRefusedConnection(t *testing.T) {
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	r := serve(t, oneRoute("a.test", hosttest.Addr(t), hosttest.Addr(t), hosttest.Addr(t), addrOf(good)))
	began := time.Now()
	for range 20 {
		resp, err := r.client(t).Post("http://a.test/", "text/plain", strings.NewReader("a POST is not lost"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != "a POST is not lost" {
			t.Fatalf("%s %s", resp.Status, body)
		}
	}
	if n := metric(t, r, "deis_router_retries_total"); n > float64(3*(1+time.Since(began)/leaveOut)) {
		t.Errorf("%v retries: refusing instances were not left out", n)
	}
}

// deaf takes a connection, reads a request and closes without an answer.
func deaf(t *testing.T) (addr string, requests *atomic.Int64) {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	requests = new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				requests.Add(1)
				_, _ = io.Copy(io.Discard, req.Body)
			}
			c.Close()
		}
	}()
	return l.Addr().String(), requests
}

func TestRepeatOnlyWhatChangesNothing(t *testing.T) {
	dead, requests := deaf(t)
	r := serve(t, oneRoute("a.test", dead, addrOf(named(t, "good"))))
	busyGood := func() { // make pick prefer the deaf one
		for _, target := range r.table.routes.get("a.test").targets {
			if target.conf.Address != dead {
				target.busy.Add(1)
			}
		}
	}
	busyGood()
	for range 5 {
		if resp, body := fetch(t, r.client(t), "http://a.test/"); resp.StatusCode != 200 || body != "good" {
			t.Fatalf("GET: %s %s", resp.Status, body)
		}
	}
	if requests.Load() != 5 {
		t.Errorf("the deaf instance got %d of 5", requests.Load())
	}
	for _, body := range []string{"data", ""} {
		requests.Store(0)
		resp, err := r.client(t).Post("http://a.test/", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 502 || requests.Load() != 1 {
			t.Errorf("POST %q: %s after %d attempts", body, resp.Status, requests.Load())
		}
		if !strings.Contains(string(text), "broke off") {
			t.Errorf("page: %s", text)
		}
	}
}

// An instance that ends during the handshake costs the client of a WebSocket nothing.
func TestUpgradeIsRepeated(t *testing.T) {
	dead, requests := deaf(t)
	r := serve(t, oneRoute("a.test", dead, addrOf(echoServer(t))))
	for _, target := range r.table.routes.get("a.test").targets {
		if target.conf.Address != dead {
			target.busy.Add(1)
		}
	}
	echo(t, r.dialWS(t, "ws://a.test/"), "hello")
	if requests.Load() != 1 {
		t.Errorf("%d attempts at the instance that ends", requests.Load())
	}
}

func TestARequestWithBodyIsNotRepeated(t *testing.T) {
	dead, requests := deaf(t)
	other, others := deaf(t)
	r := serve(t, oneRoute("a.test", dead, other))
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://a.test/", strings.NewReader("body"))
	resp, err := r.client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := requests.Load() + others.Load(); resp.StatusCode != 502 || n != 1 {
		t.Errorf("%s after %d attempts", resp.Status, n)
	}
	if n := metric(t, r, "deis_router_retries_total"); n != 0 {
		t.Errorf("%v retries", n)
	}
}

// An instance that kills each connection must not take all others with it.
func TestRepeatOnce(t *testing.T) {
	var addrs []string
	var counts []*atomic.Int64
	for range 4 {
		addr, n := deaf(t)
		addrs, counts = append(addrs, addr), append(counts, n)
	}
	r := serve(t, oneRoute("a.test", addrs...))
	if resp, _ := fetch(t, r.client(t), "http://a.test/"); resp.StatusCode != 502 {
		t.Errorf("%s", resp.Status)
	}
	total := int64(0)
	for _, n := range counts {
		total += n.Load()
	}
	if total != 2 {
		t.Errorf("%d attempts", total)
	}
}

func TestWebSocket(t *testing.T) {
	b := echoServer(t)
	r := serve(t, oneRoute("a.test", addrOf(b)))
	for _, scheme := range []string{"ws", "wss"} {
		ws := r.dialWS(t, scheme+"://a.test/")
		for _, size := range []int{1, 5000, 1 << 20} {
			echo(t, ws, strings.Repeat("x", size))
		}
		if n := metric(t, r, "deis_router_requests_in_flight"); n != 1 {
			t.Errorf("%v requests in flight", n)
		}
		if err := ws.Close(websocket.StatusNormalClosure, "bye"); err != nil {
			t.Errorf("close: %v", err)
		}
		eventually(t, "the request ended", func() bool { return metric(t, r, "deis_router_requests_in_flight") == 0 })
	}
}

// What a client sends behind the upgrade, before it saw the answer, arrives.
func TestEarlyBytesOfAnUpgrade(t *testing.T) {
	l := listen(t)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, br)
	}()
	r := serve(t, oneRoute("a.test", l.Addr().String()))
	c, err := net.Dial("tcp", r.httpAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly bytes")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	fmt.Fprint(c, ", later ones")
	_ = c.(*net.TCPConn).CloseWrite() // the other direction stays open
	if got, err := io.ReadAll(br); err != nil || string(got) != "early bytes, later ones" {
		t.Errorf("%q %v", got, err)
	}
}

func TestFailedUpgradeIsAnswered(t *testing.T) {
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "something-else")
		w.WriteHeader(http.StatusSwitchingProtocols)
	})
	r := serve(t, oneRoute("a.test", addrOf(b)))
	a := r.raw(t, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
	if !strings.HasPrefix(a, "HTTP/1.1 502") {
		t.Errorf("%q", a)
	}
	eventually(t, "nothing is counted any more", func() bool {
		target := r.table.routes.get("a.test").targets[0]
		return target.requests.Load() == 0 && target.busy.Load() == 0
	})
}
