package controller

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestReasons: only status lines change, on every way in which net/http writes
// them.
func TestReasons(t *testing.T) {
	const like = "HTTP/1.1 404 Not Found\r\nno head\r\n"
	mux := http.NewServeMux()
	mux.HandleFunc("/gone", http.NotFound)
	mux.HandleFunc("/body", func(w http.ResponseWriter, _ *http.Request) {
		for range 3 { // each a write of its own, and none at its beginning a head
			fmt.Fprint(w, like)
			_ = http.NewResponseController(w).Flush()
		}
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Large", strings.Repeat("Ab", 5000))
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, strings.Repeat(like, 1000))
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusBadRequest)
		w.Write(text)
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusForbidden)
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		rw.Flush()
		fmt.Fprint(rw, like)
		rw.Flush()
		conn.Close()
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.Listener = upperReasons(srv.Config, srv.Listener)
	srv.Start()
	defer srv.Close()

	for request, want := range map[string][]string{
		"GET /gone HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":                   {"HTTP/1.1 404 NOT FOUND\r\n", "404 page not found\n"},
		"GET /gone HTTP/1.0\r\n\r\n":                                                   {"HTTP/1.0 404 NOT FOUND\r\n"},
		"GET /body HTTP/1.0\r\n\r\n":                                                   {"HTTP/1.0 200 OK\r\n", like + like + like},
		"GET /large HTTP/1.0\r\n\r\n":                                                  {"HTTP/1.0 503 SERVICE UNAVAILABLE\r\n", strings.Repeat("Ab", 5000), strings.Repeat(like, 1000)},
		"GET /early HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":                  {"HTTP/1.1 103 EARLY HINTS\r\n", "HTTP/1.1 403 FORBIDDEN\r\n"},
		"nonsense\r\n\r\n":                                                             {"HTTP/1.1 400 BAD REQUEST\r\n"},
		"GET /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n": {"HTTP/1.1 101 SWITCHING PROTOCOLS\r\n", "\r\n\r\n" + like},
		"GET /gone HTTP/1.1\r\nHost: x\r\n\r\nGET /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": {"HTTP/1.1 404 NOT FOUND\r\n", "HTTP/1.1 200 OK\r\n", like},
		"POST /read HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi": {
			"HTTP/1.1 100 CONTINUE\r\n\r\nHTTP/1.1 400 BAD REQUEST\r\n", "\r\n\r\nhi",
		},
	} {
		got := exchange(t, srv.Listener.Addr().String(), request)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q\nis answered %.300q\nwithout %.100q", request, got, w)
			}
		}
	}
}

// exchange sends bytes and returns all that comes back until the end.
func exchange(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil {
		t.Fatalf("%q: %v after %q", request, err, text)
	}
	return string(text)
}
