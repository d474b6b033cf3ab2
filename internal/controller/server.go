package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

// call is one request on its way through an endpoint.
type call struct {
	s   *server
	w   *recorder
	r   *http.Request
	ctx context.Context
	// user is who asks; zero for anonymous calls and those of daemons.
	user paas.User
	// app is the one in the path, where the policy needs one.
	app paas.App
}

// recorder remembers the status for metrics and whether it was written.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// resource is one path of the API with its methods.
type resource struct {
	path    string
	methods map[string]*endpoint
	allow   string
	// gate is what a caller must be whatever the method.
	gate policy
}

// newHandler builds the mux from the table. Every path is known with and
// without a final slash, but for those that end in a free text.
func (s *server) newHandler() http.Handler {
	mux := http.NewServeMux()
	var freeText []*resource
	for _, res := range resources() {
		h := func(w http.ResponseWriter, r *http.Request) { s.serve(w.(*recorder), r, res) }
		switch {
		case strings.HasSuffix(res.path, "...}"):
			freeText = append(freeText, res)
			mux.HandleFunc(res.path, h)
		case res.path == "/healthz":
			mux.HandleFunc(res.path, h)
		case res.path == "/v1/":
			mux.HandleFunc("/v1/{$}", h)
			mux.HandleFunc("/v1", notThere) // the mux would redirect
		default:
			mux.HandleFunc(res.path, h)
			mux.HandleFunc(res.path+"/{$}", h)
		}
	}
	mux.HandleFunc("/", notThere)
	return s.frame(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cleanPath(r.URL.EscapedPath()) {
			mux.ServeHTTP(w, r)
			return
		}
		s.serveUnclean(w, r, freeText)
	}))
}

// cleanPath reports whether a path is one that the mux does not redirect.
func cleanPath(p string) bool {
	clean := path.Clean(p)
	return p == clean || p == clean+"/"
}

// serveUnclean serves paths with empty or dot segments: they may belong to a
// free text, such as a key id, and are nothing else.
func (s *server) serveUnclean(w http.ResponseWriter, r *http.Request, freeText []*resource) {
	for _, res := range freeText {
		prefix, name, _ := strings.Cut(strings.TrimSuffix(res.path, "...}"), "{")
		if text, ok := strings.CutPrefix(r.URL.Path, prefix); ok {
			r.SetPathValue(name, text)
			s.serve(w.(*recorder), r, res)
			return
		}
	}
	notThere(w, r)
}

// resources groups the table by path, in its order.
func resources() []*resource {
	var all []*resource
	byPath := map[string]*resource{}
	for i := range endpoints {
		e := &endpoints[i]
		for _, p := range append([]string{e.path}, e.aliases...) {
			if byPath[p] == nil {
				byPath[p] = &resource{path: p, methods: map[string]*endpoint{}, gate: e.policy.gate()}
				all = append(all, byPath[p])
			}
			byPath[p].methods[e.method] = e
		}
	}
	for _, res := range all {
		var allow []string
		for _, m := range []string{get, post, del} {
			if res.methods[m] != nil {
				allow = append(allow, m)
			}
		}
		if res.methods[get] != nil {
			allow = append(allow, http.MethodHead)
		}
		res.allow = strings.Join(append(allow, http.MethodOptions), ", ")
	}
	return all
}

// serve runs one request through authentication, authorisation and handler.
func (s *server) serve(w *recorder, r *http.Request, res *resource) {
	began := time.Now()
	w.Header().Set("Allow", res.allow)
	if res.path == "/v1/" && s.cfg.GitURL != "" {
		w.Header().Set(api.HeaderGitURL, s.cfg.GitURL)
	}
	c := &call{s: s, w: w, r: r, ctx: r.Context()}
	if err := c.handle(res); err != nil {
		c.fail(err)
	}
	s.metrics.answered(res.path, r.Method, w.status, time.Since(began))
}

// handle asks in the order of the original: who calls, what he takes for an
// answer, whether there is such a method, whether he may see the app.
func (c *call) handle(res *resource) error {
	method := c.r.Method
	if method == http.MethodHead {
		method = get
	}
	e := res.methods[method]
	if err := c.identify(res.gate); err != nil {
		return err
	}
	if err := c.negotiate(e); err != nil {
		return err
	}
	switch {
	case e != nil:
	case method == http.MethodOptions:
		return c.reply(http.StatusOK, describe(res))
	default:
		return &statusError{http.StatusMethodNotAllowed, fmt.Sprintf("Method '%s' not allowed.", method)}
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, e.bodyLimit())
	if err := c.authorize(e.policy); err != nil {
		return err
	}
	return e.handle(c)
}

// negotiate refuses requests that exclude JSON (contract 2.2), unless they take
// what this endpoint answers instead.
func (c *call) negotiate(e *endpoint) error {
	if format := c.r.URL.Query().Get("format"); format != "" && format != "json" {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	media := []string{kindJSON}
	if e != nil && e.media != "" {
		media = append(media, e.media)
	}
	if !accepts(strings.Join(c.r.Header["Accept"], ","), media) {
		return &statusError{http.StatusNotAcceptable, "Could not satisfy the request Accept header"}
	}
	return nil
}

// accepts reports whether an Accept header takes one of the media types.
func accepts(header string, media []string) bool {
	if strings.TrimSpace(header) == "" {
		return true
	}
	same := func(a, b string) bool { return a == "*" || b == "*" || a == b }
	for item := range strings.SplitSeq(strings.ToLower(header), ",") {
		item, _, _ = strings.Cut(item, ";")
		kind, sub, _ := strings.Cut(strings.TrimSpace(item), "/")
		for _, m := range media {
			if ours, ourSub, _ := strings.Cut(m, "/"); same(kind, ours) && same(sub, ourSub) {
				return true
			}
		}
	}
	return false
}

// description is the answer to OPTIONS, as the original's framework gives it.
type description struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Renders     []string `json:"renders"`
	Parses      []string `json:"parses"`
}

func describe(res *resource) description {
	name := "Api Root"
	for segment := range strings.SplitSeq(strings.TrimPrefix(res.path, "/v1/"), "/") {
		if segment != "" && !strings.HasPrefix(segment, "{") {
			name = strings.ToUpper(segment[:1]) + segment[1:]
		}
	}
	return description{Name: name, Renders: []string{kindJSON}, Parses: []string{kindJSON, kindForm, kindMultipart}}
}

// statusError is an answer whose status belongs to HTTP rather than to the
// domain. A body that is text becomes the detail.
type statusError struct {
	status int
	body   any
}

func (e *statusError) Error() string { return fmt.Sprint(e.body) }

// fail answers with an error (contract 2.3).
func (c *call) fail(err error) {
	if c.w.status != 0 { // a stream has begun; its client sees it end
		c.s.cfg.Log.Warn("an answer broke off", "path", c.r.URL.Path, "error", err.Error())
		return
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		body := e.body
		if text, ok := body.(string); ok {
			body = map[string]string{"detail": text}
		}
		writeJSON(c.w, e.status, body)
		return
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		writeJSON(c.w, http.StatusRequestEntityTooLarge, map[string]string{
			"detail": fmt.Sprintf("The request is larger than %d bytes.", e.Limit),
		})
		return
	}
	code := paas.CodeOf(err)
	if code == paas.Unauthorized {
		c.w.Header()["WWW-Authenticate"] = []string{"Token"}
	}
	if code == paas.Internal && c.ctx.Err() == nil {
		c.s.cfg.Log.Error("a request failed", "method", c.r.Method, "path", c.r.URL.Path, "error", err.Error())
	}
	body := api.ErrorBody(err)
	if detail, ok := body.(map[string]string); ok && code == paas.Conflict && strings.HasPrefix(detail["detail"], msgBusy) {
		body = map[string]string{"error": detail["detail"]}
	}
	writeJSON(c.w, api.StatusOf(err), body)
}

// reply answers with JSON.
func (c *call) reply(status int, v any) error {
	writeJSON(c.w, status, v)
	return nil
}

// empty answers without a body.
func (c *call) empty(status int) error {
	c.w.WriteHeader(status)
	return nil
}

// writeJSON writes compact JSON as the original does: no charset, no escapes
// for HTML, no final newline.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		htmlPage(w, http.StatusInternalServerError, "Server Error (500)")
		return
	}
	text := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	w.Header().Set("Content-Type", kindJSON)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	// A client that is gone cannot be told.
	_, _ = w.Write(text)
}

// lasting is the context for work that a client which hangs up must not end.
func (c *call) lasting() context.Context { return context.WithoutCancel(c.ctx) }
