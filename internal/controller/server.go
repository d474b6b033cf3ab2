package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
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
}

// newHandler builds the mux from the table. Every path is known with and
// without a final slash, but for those that end in a free text.
func (s *server) newHandler() http.Handler {
	mux := http.NewServeMux()
	for _, res := range resources() {
		h := func(w http.ResponseWriter, r *http.Request) { s.serve(w.(*recorder), r, res) }
		switch {
		case strings.HasSuffix(res.path, "...}") || res.path == "/healthz":
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
	return s.frame(mux)
}

func notThere(w http.ResponseWriter, _ *http.Request) { htmlPage(w, http.StatusNotFound, "Not Found") }

// resources groups the table by path, in its order.
func resources() []*resource {
	var all []*resource
	byPath := map[string]*resource{}
	for i := range endpoints {
		e := &endpoints[i]
		for _, path := range append([]string{e.path}, e.aliases...) {
			if byPath[path] == nil {
				byPath[path] = &resource{path: path, methods: map[string]*endpoint{}}
				all = append(all, byPath[path])
			}
			byPath[path].methods[e.method] = e
		}
	}
	for _, res := range all {
		var allow []string
		for _, m := range []string{"GET", "POST", "DELETE"} {
			if res.methods[m] != nil {
				allow = append(allow, m)
			}
		}
		if res.methods["GET"] != nil {
			allow = append(allow, "HEAD")
		}
		res.allow = strings.Join(append(allow, "OPTIONS"), ", ")
	}
	return all
}

// frame is what holds for every answer: version headers (contract 1), the
// version check, and a page instead of a broken connection after a panic.
func (s *server) frame(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		h := w.Header()
		h[api.HeaderAPIVersion] = []string{api.Version}
		h[api.HeaderAPIVersionOld] = []string{api.Version}
		h[api.HeaderPlatformVersion] = []string{api.PlatformVersion}
		h[api.HeaderPlatformVersionOld] = []string{api.PlatformVersion}
		defer func() {
			if v := recover(); v != nil && v != http.ErrAbortHandler {
				s.cfg.Log.Error("a handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				if rec.status == 0 {
					htmlPage(rec, http.StatusInternalServerError, "Server Error (500)")
				}
			}
		}()
		if v := clientVersion(r.Header); v != "" && v != "1" {
			writeJSON(rec, http.StatusMethodNotAllowed, map[string]string{"error": fmt.Sprintf(
				"Client and server versions do not match. Client version: %s Server version: 1", v)})
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// clientVersion reads DEIS_VERSION in both spellings.
func clientVersion(h http.Header) string {
	if v := h.Get("DEIS_VERSION"); v != "" {
		return v
	}
	return h.Get("Deis-Version")
}

// htmlPage answers with HTML, as the original does outside its API.
func htmlPage(w http.ResponseWriter, status int, title string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<h1>%s</h1>", title)
}

// serve runs one request through authentication, authorisation and handler.
func (s *server) serve(w *recorder, r *http.Request, res *resource) {
	began := time.Now()
	w.Header().Set("Allow", res.allow)
	if res.path == "/v1/" && s.cfg.GitURL != "" {
		w.Header().Set(api.HeaderGitURL, s.cfg.GitURL)
	}
	c := &call{s: s, w: w, r: r, ctx: r.Context()}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if err := c.handle(res, method); err != nil {
		c.fail(err)
	}
	s.metrics.answered(res.path, r.Method, w.status, time.Since(began))
}

func (c *call) handle(res *resource, method string) error {
	e := res.methods[method]
	if e == nil {
		return c.noMethod(res, method)
	}
	r := c.r
	r.Body = http.MaxBytesReader(c.w, r.Body, e.bodyLimit())
	if err := c.authorize(e.policy); err != nil {
		return err
	}
	return e.handle(c)
}

// noMethod answers methods that the path does not have; who may call nothing
// there is told so first (contract 2.3).
func (c *call) noMethod(res *resource, method string) error {
	open := false
	for _, e := range res.methods {
		open = open || e.policy == anyone
	}
	if !open {
		if err := c.authenticate(); err != nil {
			return err
		}
	}
	if method == http.MethodOptions {
		return c.reply(http.StatusOK, struct{}{})
	}
	return &statusError{http.StatusMethodNotAllowed, fmt.Sprintf("Method '%s' not allowed.", c.r.Method)}
}

// statusError is an answer whose status belongs to HTTP rather than to the domain.
type statusError struct {
	status int
	detail string
}

func (e *statusError) Error() string { return e.detail }

// fail answers with an error (contract 2.3).
func (c *call) fail(err error) {
	if c.w.status != 0 { // a stream has begun; its client sees it end
		c.s.cfg.Log.Warn("an answer broke off", "path", c.r.URL.Path, "error", err.Error())
		return
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		writeJSON(c.w, e.status, map[string]string{"detail": e.detail})
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
		c.w.Header().Set("WWW-Authenticate", "Token")
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
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	// A client that is gone cannot be told.
	_, _ = w.Write(text)
}

// lasting is the context for work that a client which hangs up must not end.
func (c *call) lasting() context.Context { return context.WithoutCancel(c.ctx) }

// form reads the body as an object: JSON, or a form (contract 2.2). An empty
// body is an empty object.
func (c *call) form() (*form, error) {
	kind, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "", "application/json":
		return c.jsonForm()
	case "application/x-www-form-urlencoded":
		if err := c.r.ParseForm(); err != nil {
			return nil, badForm(err)
		}
	case "multipart/form-data":
		if err := c.r.ParseMultipartForm(maxBody); err != nil {
			return nil, badForm(err)
		}
		defer func() { _ = c.r.MultipartForm.RemoveAll() }() // files that nobody asked for
	default:
		return nil, &statusError{http.StatusUnsupportedMediaType, fmt.Sprintf("Unsupported media type '%s' in request.", kind)}
	}
	f := &form{fields: map[string]any{}}
	for name, values := range c.r.PostForm {
		f.fields[name] = values[0]
	}
	return f, nil
}

func badForm(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	return paas.Errorf(paas.Invalid, "Form parse error")
}

func (c *call) jsonForm() (*form, error) {
	dec := json.NewDecoder(c.r.Body)
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	if err == io.EOF {
		return &form{fields: map[string]any{}}, nil
	}
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("more than one value")
		}
	}
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, err
		}
		return nil, paas.Errorf(paas.Invalid, "JSON parse error - %v", err)
	}
	switch v := v.(type) {
	case map[string]any:
		return &form{fields: v}, nil
	case nil:
		return nil, paas.FieldError("non_field_errors", paas.MsgNull)
	}
	return nil, paas.FieldError("non_field_errors", "Invalid data. Expected a dictionary, but got %s.", kindOf(v))
}

// kindOf names a JSON value as the original's language does.
func kindOf(v any) string {
	switch v := v.(type) {
	case []any:
		return "list"
	case string:
		return "str"
	case bool:
		return "bool"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "float"
		}
		return "int"
	}
	return "dict"
}

// form is a request's object. Its methods collect what is wrong with it.
type form struct {
	fields map[string]any
	faults map[string][]string
}

// err reports every field that is wrong at once.
func (f *form) err() error {
	if len(f.faults) == 0 {
		return nil
	}
	return &paas.Error{Code: paas.Invalid, Fields: f.faults}
}

func (f *form) fault(name string, messages ...string) {
	for _, m := range messages {
		if f.faults == nil {
			f.faults = map[string][]string{}
		}
		if !slices.Contains(f.faults[name], m) {
			f.faults[name] = append(f.faults[name], m)
		}
	}
}

func (f *form) has(name string) bool {
	_, ok := f.fields[name]
	return ok
}

// required returns a field that must be there and not be blank.
func (f *form) required(name string, checks ...func(string) []string) string {
	if !f.has(name) {
		f.fault(name, paas.MsgRequired)
		return ""
	}
	return f.filled(name, checks...)
}

// filled returns a field that may be missing but not blank.
func (f *form) filled(name string, checks ...func(string) []string) string {
	text := f.optional(name, checks...)
	if v, ok := f.fields[name]; ok && v == "" {
		f.fault(name, paas.MsgBlank)
	}
	return text
}

// optional returns a field as text, "" where there is none. The checks see
// texts that are not empty.
func (f *form) optional(name string, checks ...func(string) []string) string {
	v, ok := f.fields[name]
	if !ok {
		return ""
	}
	switch v.(type) {
	case nil:
		f.fault(name, paas.MsgNull)
		return ""
	case map[string]any, []any:
		f.fault(name, "Not a valid string.")
		return ""
	}
	text := paas.Text(v)
	for _, check := range checks {
		if text != "" {
			f.fault(name, check(text)...)
		}
	}
	return text
}

// object returns a field that holds an object, or a text with the JSON of one.
func (f *form) object(name string) map[string]any {
	v, ok := f.fields[name]
	if !ok {
		return nil
	}
	if text, ok := v.(string); ok {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if dec.Decode(&v) != nil {
			v = text
		}
	}
	switch v := v.(type) {
	case map[string]any:
		return v
	case nil:
		f.fault(name, paas.MsgNull)
	default:
		f.fault(name, fmt.Sprintf("Expected a dictionary of items but got %s.", kindOf(v)))
	}
	return nil
}

// texts is object for one whose values are all texts.
func (f *form) texts(name string) map[string]string {
	texts := map[string]string{}
	for key, v := range f.object(name) {
		text, ok := v.(string)
		if !ok {
			f.fault(name, "Expected a dictionary of strings.")
			continue
		}
		texts[key] = text
	}
	return texts
}

// atMost checks a length.
func atMost(max int) func(string) []string {
	return func(s string) []string { return paas.CheckLength(s, max) }
}
