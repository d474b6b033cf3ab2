package controller

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/deis/deis/internal/api"
)

// clientMajor is the version of clients that this server speaks with.
const clientMajor = "1"

// The cross-origin rules of contract 1: browsers of any origin may call the
// API, with a token, and read what else the headers say.
var (
	corsAllowed = strings.Join([]string{"content-type", "accept", "origin", "Authorization", "Host"}, ", ")
	corsMethods = strings.Join([]string{get, post, "PUT", "PATCH", del, "OPTIONS"}, ", ")
	corsExposed = strings.Join([]string{
		api.HeaderAPIVersion, api.HeaderPlatformVersion, api.HeaderAPIVersionOld, api.HeaderPlatformVersionOld,
		api.HeaderRelease, api.HeaderReleaseOld,
	}, ", ")
)

// corsMaxAge is how long browsers keep the answer to a preflight, in seconds.
const corsMaxAge = "86400"

// frame is what holds for every answer: version headers and cross-origin rules
// (contract 1), the version check, and a page instead of a broken connection
// after a panic.
func (s *server) frame(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		h := w.Header()
		h[api.HeaderAPIVersion] = []string{api.Version}
		h[api.HeaderAPIVersionOld] = []string{api.Version}
		h[api.HeaderPlatformVersion] = []string{api.PlatformVersion}
		h[api.HeaderPlatformVersionOld] = []string{api.PlatformVersion}
		defer s.recovered(rec, r)
		if preflight := allowOrigins(h, r); preflight {
			rec.WriteHeader(http.StatusOK)
			return
		}
		if v, ok := clientVersion(r.Header); ok && v != clientMajor {
			writeJSON(rec, http.StatusMethodNotAllowed, map[string]string{"error": fmt.Sprintf(
				"Client and server versions do not match. Client version: %s Server version: %s", v, clientMajor)})
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// allowOrigins sets the headers that browsers want to see, and reports whether
// the request asks for nothing else.
func allowOrigins(h http.Header, r *http.Request) (preflight bool) {
	options := r.Method == http.MethodOptions
	if r.Header.Get("Origin") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", corsExposed)
		if options {
			h.Set("Access-Control-Allow-Headers", corsAllowed)
			h.Set("Access-Control-Allow-Methods", corsMethods)
			h.Set("Access-Control-Max-Age", corsMaxAge)
		}
	}
	return options && r.Header.Get("Access-Control-Request-Method") != ""
}

// clientVersion reads DEIS_VERSION in both spellings.
func clientVersion(h http.Header) (version string, ok bool) {
	for _, name := range []string{"Deis_version", "Deis-Version"} { // as net/http has them
		if values := h[name]; len(values) > 0 {
			return values[0], true
		}
	}
	return "", false
}

// recovered ends a request whose handler panicked: with a page, or where an
// answer has begun, without its end. It is to be deferred.
func (s *server) recovered(w *recorder, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	err, _ := v.(error)
	aborted := errors.Is(err, http.ErrAbortHandler)
	if !aborted {
		s.cfg.Log.Error("a handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
	if aborted || w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	htmlPage(w, http.StatusInternalServerError, "Server Error (500)")
}

func notThere(w http.ResponseWriter, _ *http.Request) { htmlPage(w, http.StatusNotFound, "Not Found") }

// htmlPage answers with HTML, as the original does outside its API.
func htmlPage(w http.ResponseWriter, status int, title string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<h1>%s</h1>", title)
}
