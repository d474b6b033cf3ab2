package controller

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// document is what the tests read of openapi.json.
type document struct {
	OpenAPI    string
	Paths      map[string]map[string]operation
	Components struct {
		Responses  map[string]response
		Parameters map[string]parameter
		Schemas    map[string]any
	}
	schemas *jsonschema.Compiler

	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema // by JSON pointer
}

type operation struct {
	OperationID string `json:"operationId"`
	Security    *[]map[string][]string
	Parameters  []parameter
	Responses   map[string]response
}

type response struct {
	Ref     string `json:"$ref"`
	Content map[string]any
}

type parameter struct {
	Ref      string `json:"$ref"`
	Name, In string
}

// theDocument is openapi.json, read once for all tests.
var theDocument = sync.OnceValues(func() (*document, error) {
	d := &document{compiled: map[string]*jsonschema.Schema{}}
	if err := json.Unmarshal(openAPIDocument, d); err != nil {
		return nil, err
	}
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPIDocument))
	if err != nil {
		return nil, err
	}
	d.schemas = jsonschema.NewCompiler()
	d.schemas.DefaultDraft(jsonschema.Draft2020)
	d.schemas.AssertFormat()
	return d, d.schemas.AddResource("openapi.json", root)
})

// schema compiles the schema at a JSON pointer.
func (d *document) schema(pointer ...string) (*jsonschema.Schema, error) {
	var at strings.Builder
	for _, p := range pointer {
		at.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(p))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.compiled[at.String()]; s != nil {
		return s, nil
	}
	s, err := d.schemas.Compile("openapi.json#" + strings.NewReplacer("{", "%7B", "}", "%7D").Replace(at.String()))
	if err == nil {
		d.compiled[at.String()] = s
	}
	return s, err
}

// documentPath is a route of the mux as OpenAPI writes it.
func documentPath(route string) string { return strings.Replace(route, "...}", "}", 1) }

// check says in what an answer differs from the document.
func (d *document) check(method, route string, status int, header http.Header, body []byte) error {
	if method == http.MethodHead {
		method, body = http.MethodGet, nil
	}
	path, verb, code := documentPath(route), strings.ToLower(method), strconv.Itoa(status)
	op, ok := d.Paths[path][verb]
	if !ok {
		return nil // 405 or OPTIONS
	}
	answer, ok := op.Responses[code]
	if !ok {
		if status < http.StatusBadRequest {
			return fmt.Errorf("status %d is not documented", status)
		}
		code, answer = "default", op.Responses["default"]
	}
	pointer := []string{"paths", path, verb, "responses", code}
	if name, ok := strings.CutPrefix(answer.Ref, "#/components/responses/"); ok {
		pointer, answer = []string{"components", "responses", name}, d.Components.Responses[name]
	}
	if len(body) == 0 {
		return nil
	}
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || answer.Content[kind] == nil {
		return fmt.Errorf("content type %q is not documented for status %d", header.Get("Content-Type"), status)
	}
	if kind != kindJSON {
		return nil
	}
	schema, err := d.schema(append(pointer, "content", kind, "schema")...)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// documented holds every answer of a handler against the document.
func documented(t *testing.T, next http.Handler) http.Handler {
	t.Helper()
	d, err := theDocument()
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		copied := &copier{ResponseWriter: w}
		next.ServeHTTP(copied, r)
		route := strings.TrimSuffix(r.Pattern, "/{$}")
		if r.Pattern == "/v1/{$}" {
			route = "/v1/"
		}
		if err := d.check(r.Method, route, copied.status, w.Header(), copied.body.Bytes()); err != nil {
			t.Errorf("%s %s is not as openapi.json says: %v\n%s", r.Method, r.URL, err, copied.body.String())
		}
	})
}

// copier keeps a copy of an answer.
type copier struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (c *copier) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Hijack is how an answer of 101 begins.
func (c *copier) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c.status = http.StatusSwitchingProtocols
	return http.NewResponseController(c.ResponseWriter).Hijack()
}

func (c *copier) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *copier) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	c.body.Write(b)
	return c.ResponseWriter.Write(b)
}

// What the table has the document has, with the same credentials, and nothing else.
func TestDocumentMatchesTheTable(t *testing.T) {
	d, err := theDocument()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, res := range resources() {
		path := documentPath(res.path)
		for method, e := range res.methods {
			verb := strings.ToLower(method)
			known[verb+" "+path] = true
			op, ok := d.Paths[path][verb]
			if !ok {
				t.Errorf("%s %s is not in openapi.json", method, path)
				continue
			}
			scheme := "token"
			if op.Security != nil {
				scheme = "none"
				for _, s := range *op.Security {
					scheme = slices.Collect(maps.Keys(s))[0]
				}
			}
			want := map[policy]string{anyone: "none", daemons: "builder"}[e.policy]
			if want == "" {
				want = "token"
			}
			if scheme != want {
				t.Errorf("%s %s has security %s, want %s", method, path, scheme, want)
			}
			d.checkParameters(t, path, op)
		}
	}
	ids := map[string]bool{}
	for path, item := range d.Paths {
		for verb, op := range item {
			if !known[verb+" "+path] {
				t.Errorf("%s %s is in openapi.json only", verb, path)
			}
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operationId %q is not its own", verb, path, op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
	if d.OpenAPI != "3.1.0" {
		t.Errorf("version %s", d.OpenAPI)
	}
}

// checkParameters compares the parameters of a path with its braces.
func (d *document) checkParameters(t *testing.T, path string, op operation) {
	t.Helper()
	var documented, braces []string
	for _, p := range op.Parameters {
		if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
			p = d.Components.Parameters[name]
		}
		if p.In == "path" {
			documented = append(documented, p.Name)
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			braces = append(braces, strings.TrimSuffix(name, "}"))
		}
	}
	if !slices.Equal(documented, braces) {
		t.Errorf("%s: path parameters %v, want %v", path, documented, braces)
	}
}

// Every schema compiles, every reference leads somewhere, nothing is left over.
func TestDocumentIsWhole(t *testing.T) {
	d, err := theDocument()
	if err != nil {
		t.Fatal(err)
	}
	for name := range d.Components.Schemas {
		if _, err := d.schema("components", "schemas", name); err != nil {
			t.Error(err)
		}
	}
	var root any
	if err := json.Unmarshal(openAPIDocument, &root); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	walk(root, func(ref string) { used[ref] = true })
	for ref := range used {
		at := root
		for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
			object, ok := at.(map[string]any)
			if at = object[step]; !ok || at == nil {
				t.Errorf("%s leads nowhere", ref)
				break
			}
		}
	}
	for kind, all := range root.(map[string]any)["components"].(map[string]any) {
		for name := range all.(map[string]any) {
			if ref := "#/components/" + kind + "/" + name; kind != "securitySchemes" && !used[ref] {
				t.Errorf("nothing uses %s", ref)
			}
		}
	}
}

// walk visits every reference.
func walk(v any, visit func(ref string)) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			walk(item, visit)
		}
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			visit(ref)
		}
		for _, item := range v {
			walk(item, visit)
		}
	}
}

func TestDocumentIsServed(t *testing.T) {
	p := newPlatform(t)
	var served, ours any
	p.anonymous().json(&served, 200, "GET", "/v1/openapi.json", nil)
	if err := json.Unmarshal(openAPIDocument, &ours); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(served) != fmt.Sprint(ours) {
		t.Error("it is another document")
	}
}

// The check finds what is wrong, or the others would find nothing.
func TestDocumentRefuses(t *testing.T) {
	d, err := theDocument()
	if err != nil {
		t.Fatal(err)
	}
	token := strings.Repeat("ab", 20)
	tests := []struct {
		status int
		kind   string
		body   string
		ok     bool
	}{
		{200, "application/json", `{"token":"` + token + `"}`, true},
		{200, "application/json", `{"token":"x"}`, false},
		{200, "application/json", `{"token":"` + token + `","more":1}`, false},
		{200, "application/json", `{}`, false},
		{200, "application/json", `nonsense`, false},
		{200, "text/plain", `{"token":"` + token + `"}`, false},
		{201, "application/json", `{"token":"` + token + `"}`, false},
		{400, "application/json", `{"username":["This field is required."]}`, true},
		{400, "application/json", `{"username":"This field is required."}`, false},
		{418, "application/json", `{"detail":"I am a teapot."}`, true},
		{418, "application/json", `{"detail":7}`, false},
	}
	for _, test := range tests {
		err := d.check("POST", "/v1/auth/login", test.status, http.Header{"Content-Type": {test.kind}}, []byte(test.body))
		if (err == nil) != test.ok {
			t.Errorf("%d %s %s: %v", test.status, test.kind, test.body, err)
		}
	}
}
