package deis_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"golang.org/x/crypto/ssh"
)

const created = "2014-01-01T00:00:00UTC"

// stub is a controller in memory that answers as the contract says, as far as
// the command line can tell. Everything it makes has the same date and UUIDs
// that count up, so that scripts can compare whole answers.
type stub struct {
	mu     sync.Mutex
	server *httptest.Server
	secure *httptest.Server
	// set by scripts: see set.
	version, gitURL, redirect string
	failing, quotedLogs       bool
	elsewhere                 string // the status that a server that is no controller answers
	adminOnly                 bool   // only users may register others
	apps                      map[string]*stubApp
	users                     map[string]string // name to password
	admins                    []string
	keys                      []api.Key
	certs                     []api.Cert
	uuids                     int
	requests                  []string // method and path with query
}

type stubApp struct {
	api.App
	values     map[string]any
	limits     map[string]map[string]any // "memory", "cpu", "tags"
	releases   []api.Release             // oldest first
	builds     []api.Build
	containers []api.Container
	domains    []api.Domain
	users      []string
	logs       []string
	rollouts   []api.Rollout  // newest first
	instances  []api.Instance // nil where the controller does not tell
}

func newStub() *stub {
	s := &stub{
		version: api.Version, gitURL: "ssh://git@deis.localhost:2299",
		apps: map[string]*stubApp{}, users: map[string]string{},
	}
	s.server = httptest.NewServer(s)
	s.secure = httptest.NewUnstartedServer(s)
	s.secure.Config.ErrorLog = log.New(io.Discard, "", 0) // failing handshakes are meant
	s.secure.StartTLS()
	return s
}

func (s *stub) close() {
	s.server.Close()
	s.secure.Close()
}

// set changes the stub's ways in the middle of a script.
func (s *stub) set(key, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch key {
	case "version":
		s.version = value
	case "git-url":
		s.gitURL = value
	case "redirect":
		s.redirect = value
	case "failing":
		s.failing = value == "yes"
	case "quoted-logs":
		s.quotedLogs = value == "yes"
	case "admin-only":
		s.adminOnly = value == "yes"
	case "forget-user":
		delete(s.users, value)
	case "elsewhere":
		s.elsewhere = value
	case "deploy": // what the builder does after a push
		a := s.apps[value]
		a.builds = append(a.builds, api.Build{
			UUID: s.uuid(), App: value, Owner: a.Owner, Image: value, SHA: "0123abcd", Procfile: map[string]string{"web": "run", "worker": "work"}, Created: created,
		})
		a.Structure = map[string]int{"web": 1}
		s.release(a, "alice", "alice deployed 0123abc")
	case "crash": // an instance
		a := s.apps[value]
		a.containers[0].State = "crashed"
		a.instances = []api.Instance{{
			App: a.ID, Type: a.containers[0].Type, Num: 1, Release: a.containers[0].Release, State: "crashed",
			Reason: "exited with code 1", Restarts: 3,
		}}
	case "rollout": // "<app> <what it comes to>"
		app, end, _ := strings.Cut(value, " ")
		s.apps[app].rollouts = append([]api.Rollout{stubRollout(app, end)}, s.apps[app].rollouts...)
	case "log":
		app, line, _ := strings.Cut(value, " ")
		s.apps[app].logs = append(s.apps[app].logs, line)
	default:
		return fmt.Errorf("the stub has no %s", key)
	}
	return nil
}

// stubRollout is a deploy that goes on, or that came to an end a little ago.
func stubRollout(app, end string) api.Rollout {
	began := time.Now().Add(-200 * time.Second).UTC().Format(api.TimeLayout)
	r := api.Rollout{
		ID: 12, App: app, Owner: "bob", Kind: "deploy", State: "starting", Step: "starting web=1", Version: 5,
		Summary: "bob deployed abc1234", Created: began,
	}
	if end != "goes on" {
		r.State, r.Step, r.Finished = end, "", &began
	}
	if end == "failed" {
		r.Reason = "aborting, failed to create some containers\nweb.1: exited with code 1\nThe last lines of its log:\n  no database"
	}
	return r
}

func (s *stub) uuid() string {
	s.uuids++
	return fmt.Sprintf("00000000-0000-0000-0000-%012d", s.uuids)
}

// release adds a release and replaces the containers.
func (s *stub) release(a *stubApp, owner, summary string) int {
	n := len(a.releases) + 1
	r := api.Release{UUID: "r" + strconv.Itoa(n), App: a.ID, Owner: owner, Version: n, Summary: summary, Config: "c" + strconv.Itoa(n), Created: created, Updated: created}
	if len(a.builds) > 0 {
		r.Build = &a.builds[len(a.builds)-1].UUID
	}
	a.releases = append(a.releases, r)
	s.formation(a)
	return n
}

func (s *stub) formation(a *stubApp) {
	a.containers = []api.Container{}
	for _, kind := range slices.Sorted(maps.Keys(a.Structure)) {
		for n := range a.Structure[kind] {
			a.containers = append(a.containers, api.Container{
				UUID: kind + strconv.Itoa(n+1), App: a.ID, Owner: a.Owner,
				Release: "v" + strconv.Itoa(len(a.releases)), Type: kind, Num: n + 1, State: "up", Created: created, Updated: created,
			})
		}
	}
}

// reply is a status and a body; a nil body is empty.
type reply struct {
	status int
	body   any
}

var (
	notFound  = reply{404, map[string]string{"detail": "Not found"}}
	forbidden = reply{403, map[string]string{"detail": "You do not have permission to perform this action."}}
	unknown   = reply{401, map[string]string{"detail": "Invalid token"}}
	noToken   = reply{401, map[string]string{"detail": "Authentication credentials were not provided."}}
)

func invalid(field, message string) reply {
	return reply{400, map[string][]string{field: {message}}}
}

func detail(status int, message string) reply {
	return reply{status, map[string]string{"detail": message}}
}

// page is contract 2.4.
func page[T any](r *http.Request, all []T) reply {
	size, err := strconv.Atoi(r.URL.Query().Get("page_size"))
	if err != nil || size < 1 {
		size = 100
	}
	shown := append([]T{}, all[:min(size, len(all))]...)
	return reply{200, api.List[T]{Count: len(all), Results: shown}}
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	h := w.Header()
	if s.elsewhere != "" {
		status, _ := strconv.Atoi(s.elsewhere)
		http.Error(w, "<h1>Welcome to nginx</h1>", status)
		return
	}
	h[api.HeaderAPIVersion] = []string{s.version}
	h[api.HeaderPlatformVersion] = []string{api.PlatformVersion}
	if s.redirect != "" {
		http.Redirect(w, r, s.redirect, http.StatusMovedPermanently)
		return
	}
	if s.failing {
		w.WriteHeader(500)
		fmt.Fprint(w, "<h1>Server Error (500)</h1>")
		return
	}
	body := map[string]any{}
	if r.ContentLength > 0 {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			panic(err) // the command line sends no broken JSON
		}
	}
	answer := s.answer(h, r, body)
	if text, ok := answer.body.(string); ok {
		h.Set("Content-Type", "text/plain")
		w.WriteHeader(answer.status)
		fmt.Fprint(w, text)
		return
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(answer.status)
	if answer.body != nil {
		_ = json.NewEncoder(w).Encode(answer.body)
	}
}

func (s *stub) answer(h http.Header, r *http.Request, body map[string]any) reply {
	path := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.EscapedPath(), "/v1"), "/"), "/")
	for i := range path {
		path[i], _ = url.PathUnescape(path[i])
	}
	user := strings.TrimPrefix(r.Header.Get("Authorization"), "token token-of-")
	user, _, _ = strings.Cut(user, "#")
	_, known := s.users[user]
	route := r.Method + " " + path[0]
	switch {
	case route == "GET " && s.gitURL != "":
		h[api.HeaderGitURL] = []string{s.gitURL}
	case r.URL.Path == "/v1/auth/register/":
		if s.adminOnly && !known {
			return detail(403, "Authentication credentials were not provided.")
		}
		return s.register(body)
	case r.URL.Path == "/v1/auth/login/":
		if name := fmt.Sprint(body["username"]); s.users[name] != "" && s.users[name] == body["password"] {
			return reply{200, map[string]string{"token": "token-of-" + name}}
		}
		return invalid("non_field_errors", "Unable to log in with provided credentials.")
	}
	switch {
	case user == "":
		return noToken
	case !known:
		return unknown
	case route == "GET ":
		return reply{200, struct{}{}}
	case path[0] == "auth":
		return s.auth(user, r.Method+" "+path[1], body)
	case path[0] == "users":
		if user == "bob" {
			return forbidden
		}
		all := []api.User{}
		for _, name := range slices.Sorted(maps.Keys(s.users)) {
			all = append(all, api.User{Username: name})
		}
		return page(r, all)
	case path[0] == "keys":
		return s.key(r, user, path[1:], body)
	case path[0] == "certs":
		return s.cert(r, user, path[1:], body)
	case path[0] == "admin":
		return s.admin(r, path[2:], body)
	case route == "GET apps" && len(path) == 1:
		all := []api.App{}
		for _, id := range slices.Sorted(maps.Keys(s.apps)) {
			all = append(all, s.apps[id].App)
		}
		return page(r, all)
	case route == "POST apps" && len(path) == 1:
		return s.create(user, body)
	case path[0] == "apps":
		a := s.apps[path[1]]
		if a == nil {
			return notFound
		}
		if a.Owner != user && !slices.Contains(a.users, user) {
			return forbidden
		}
		return s.app(h, r, a, user, path[2:], body)
	}
	return reply{404, "<h1>Not Found</h1>"}
}

func (s *stub) register(body map[string]any) reply {
	name := fmt.Sprint(body["username"])
	if _, ok := body["email"]; !ok {
		return reply{500, "<h1>Server Error (500)</h1>"}
	}
	if s.users[name] != "" {
		return invalid("username", "This field must be unique.")
	}
	s.users[name] = fmt.Sprint(body["password"])
	return reply{201, api.User{Username: name, Email: fmt.Sprint(body["email"])}}
}

func (s *stub) auth(user, route string, body map[string]any) reply {
	other, named := body["username"].(string)
	if named && s.users[other] == "" {
		return notFound
	}
	switch route {
	case "POST tokens":
		if body["all"] != nil {
			return reply{200, json.RawMessage(`""`)}
		}
		return reply{200, map[string]string{"token": "token-of-" + cmp.Or(other, user) + "#new"}}
	case "DELETE cancel":
		name := cmp.Or(other, user)
		for _, a := range s.apps {
			if a.Owner == name {
				return detail(409, name+" still has applications assigned. Delete or transfer ownership")
			}
		}
		delete(s.users, name)
		return reply{204, nil}
	}
	return s.passwd(user, body)
}

func (s *stub) passwd(user string, body map[string]any) reply {
	if name, ok := body["username"].(string); ok {
		if s.users[name] == "" {
			return notFound
		}
		user = name
	} else if body["password"] != s.users[user] {
		return detail(400, "Current password does not match")
	}
	s.users[user] = fmt.Sprint(body["new_password"])
	return reply{200, map[string]string{"status": "password set"}}
}

func (s *stub) key(r *http.Request, user string, path []string, body map[string]any) reply {
	switch r.Method {
	case "GET":
		return page(r, s.keys)
	case "POST":
		k := api.Key{UUID: s.uuid(), Owner: user, ID: fmt.Sprint(body["id"]), Public: fmt.Sprint(body["public"]), Created: created}
		parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.Public))
		if err != nil {
			return invalid("public", "Incorrect padding")
		}
		k.Fingerprint = ssh.FingerprintLegacyMD5(parsed)
		if slices.ContainsFunc(s.keys, func(o api.Key) bool { return o.Fingerprint == k.Fingerprint }) {
			return invalid("public", "This field must be unique.")
		}
		s.keys = append(s.keys, k)
		return reply{201, k}
	}
	for i, k := range s.keys {
		if k.ID == strings.Join(path, "/") {
			s.keys = slices.Delete(s.keys, i, i+1)
			return reply{204, nil}
		}
	}
	return notFound
}

func (s *stub) cert(r *http.Request, user string, path []string, body map[string]any) reply {
	switch r.Method {
	case "GET":
		return page(r, s.certs)
	case "POST":
		if !strings.HasPrefix(fmt.Sprint(body["certificate"]), "-----BEGIN CERTIFICATE") {
			return invalid("certificate", "Could not load certificate: no PEM")
		}
		name, ok := body["common_name"].(string)
		if !ok {
			name = "from-the-certificate.example.com"
		}
		for _, c := range s.certs {
			if c.CommonName == name {
				return invalid("common_name", "This field must be unique.")
			}
		}
		c := api.Cert{ID: int64(len(s.certs) + 1), Owner: user, CommonName: name, Expires: created}
		s.certs = append(s.certs, c)
		return reply{201, c}
	}
	for i, c := range s.certs {
		if c.CommonName == path[0] {
			s.certs = slices.Delete(s.certs, i, i+1)
			return reply{204, nil}
		}
	}
	return notFound
}

func (s *stub) admin(r *http.Request, path []string, body map[string]any) reply {
	switch r.Method {
	case "GET":
		all := []map[string]any{}
		for _, name := range s.admins {
			all = append(all, map[string]any{"username": name, "is_superuser": true})
		}
		return page(r, all)
	case "POST":
		s.admins = append(s.admins, fmt.Sprint(body["username"]))
		return reply{201, nil}
	}
	s.admins = slices.DeleteFunc(s.admins, func(name string) bool { return name == path[0] })
	return reply{204, nil}
}

func (s *stub) create(user string, body map[string]any) reply {
	id, ok := body["id"].(string)
	if !ok {
		id = "exotic-elephant"
	}
	switch {
	case s.apps[id] != nil:
		return invalid("id", "This field must be unique.")
	case strings.ToLower(id) != id:
		return invalid("id", "App IDs can only contain [a-z0-9-].")
	}
	a := &stubApp{App: api.App{UUID: s.uuid(), ID: id, Owner: user, URL: id + ".localhost", Structure: map[string]int{}, Created: created, Updated: created}}
	a.values, a.limits = map[string]any{}, map[string]map[string]any{"memory": {}, "cpu": {}, "tags": {}}
	s.apps[id] = a
	s.release(a, user, user+" created initial release")
	return reply{201, a.App}
}

func (s *stub) app(h http.Header, r *http.Request, a *stubApp, user string, path []string, body map[string]any) reply {
	what := ""
	if len(path) > 0 {
		what = path[0]
	}
	switch route := r.Method + " " + what; route {
	case "GET ":
		return reply{200, a.App}
	case "POST ":
		if s.users[fmt.Sprint(body["owner"])] == "" {
			return notFound
		}
		a.Owner = fmt.Sprint(body["owner"])
		return reply{200, nil}
	case "POST builds":
		return s.pull(h, a, user, body)
	case "DELETE ":
		if a.Owner != user {
			return forbidden
		}
		delete(s.apps, a.ID)
		return reply{204, nil}
	case "GET logs":
		return s.logs(r, a)
	case "GET drains":
		return reply{200, api.Drains{Drains: []api.Drain{
			{URL: "tls://logs.example.com:6514", Sent: 12},
			{URL: "syslog://10.0.0.1:514", Sent: 3, Dropped: 4, Error: "connection refused"},
		}}}
	case "POST run":
		if len(a.builds) == 0 {
			return detail(400, "No build associated with this release to run this command")
		}
		command := fmt.Sprint(body["command"])
		if status, ok := strings.CutPrefix(command, "exit "); ok {
			n, _ := strconv.Atoi(status)
			return reply{200, []any{n, "leaving\n"}}
		}
		return reply{200, []any{0, "ran " + command + "\n"}}
	case "GET config":
		return reply{200, api.Config{App: a.ID, Values: a.values, Memory: a.limits["memory"], CPU: a.limits["cpu"], Tags: a.limits["tags"]}}
	case "POST config":
		return s.config(h, a, user, body)
	case "POST scale":
		if len(a.builds) == 0 {
			return detail(400, "No build associated with this release")
		}
		for kind, n := range body {
			if kind == "broken" {
				return detail(503, "aborting, failed to create some containers")
			}
			a.Structure[kind] = int(n.(float64))
		}
		s.formation(a)
		return reply{204, nil}
	case "GET rollouts":
		for _, r := range a.rollouts {
			if len(path) > 1 && path[1] == strconv.FormatInt(r.ID, 10) {
				return reply{200, r}
			}
		}
		if len(path) > 1 || a.rollouts == nil {
			return notFound
		}
		return page(r, a.rollouts)
	case "GET instances":
		if a.instances == nil {
			return notFound
		}
		return page(r, a.instances)
	case "GET containers":
		return page(r, a.containers)
	case "POST containers":
		return s.restart(a, path[1:len(path)-1])
	case "GET builds", "DELETE builds":
		return s.build(r, a, path[1:])
	case "GET releases", "POST releases":
		return s.releases(r, a, user, path[1:], body)
	case "GET domains", "POST domains", "DELETE domains":
		return s.domain(r, a, path[1:], body)
	case "GET perms":
		return reply{200, map[string][]string{"users": append([]string{}, a.users...)}}
	case "POST perms":
		if s.users[fmt.Sprint(body["username"])] == "" {
			return notFound
		}
		a.users = append(a.users, fmt.Sprint(body["username"]))
		return reply{201, nil}
	case "DELETE perms":
		a.users = slices.DeleteFunc(a.users, func(u string) bool { return u == path[1] })
		return reply{204, nil}
	}
	return reply{405, map[string]string{"detail": "Method '" + r.Method + "' not allowed."}}
}

// build answers what is asked about builds. Pushed ones have a log and documents.
func (s *stub) build(r *http.Request, a *stubApp, path []string) reply {
	switch {
	case r.Method == "DELETE":
		if path[0] != "cache" {
			return notFound
		}
		return reply{204, nil}
	case len(path) == 0:
		newest := slices.Clone(a.builds)
		slices.Reverse(newest)
		return page(r, newest)
	}
	i := slices.IndexFunc(a.builds, func(b api.Build) bool { return b.UUID == path[0] })
	if i < 0 {
		return notFound
	}
	b := a.builds[i]
	switch {
	case len(path) == 1:
		return reply{200, b}
	case b.SHA == "":
		return detail(404, "This build has no "+path[1]+". Only builds of git pushes have one.")
	case path[1] == "log":
		return reply{200, "-----> Building " + b.SHA + "\n       done\n"}
	}
	return reply{200, map[string]string{"document": path[1] + " of " + b.SHA}}
}

func (s *stub) logs(r *http.Request, a *stubApp) reply {
	lines := a.logs
	if n, err := strconv.Atoi(r.URL.Query().Get("log_lines")); err == nil {
		lines = lines[max(0, len(lines)-n):]
	}
	if len(lines) == 0 {
		return reply{204, nil}
	}
	text := strings.Join(lines, "\n") + "\n"
	if s.quotedLogs {
		quoted, _ := json.Marshal(text)
		text = string(quoted)
	}
	return reply{200, text}
}

func (s *stub) config(h http.Header, a *stubApp, user string, body map[string]any) reply {
	if a.values["LOCKED"] != nil {
		return reply{409, map[string]string{"error": "Config changes already in progress.\nalice holds the lock"}}
	}
	values, _ := body["values"].(map[string]any)
	for name, value := range values {
		if strings.ContainsAny(name, "- ") {
			return invalid("values", "Config keys must start with a letter or underscore and only contain [A-z0-9_]")
		}
		if value == nil {
			delete(a.values, name)
		} else {
			a.values[name] = value
		}
	}
	for field, limits := range a.limits {
		change, _ := body[field].(map[string]any)
		for name, value := range change {
			limits[name] = value
			if value == nil {
				delete(limits, name)
			}
		}
	}
	n := s.release(a, user, user+" changed config")
	h[api.HeaderRelease] = []string{strconv.Itoa(n)}
	return reply{201, api.Config{App: a.ID, Values: a.values}}
}

// pull shows the process types that it got in the app's log.
func (s *stub) pull(h http.Header, a *stubApp, user string, body map[string]any) reply {
	image := fmt.Sprint(body["image"])
	if strings.Contains(image, "deis/builder") {
		return detail(403, "Repository name "+image+" is not allowed")
	}
	a.builds = append(a.builds, api.Build{UUID: s.uuid(), App: a.ID, Image: image, Created: created})
	a.logs = append(a.logs, fmt.Sprint("procfile ", body["procfile"]))
	h[api.HeaderRelease] = []string{strconv.Itoa(s.release(a, user, user+" deployed "+image))}
	return reply{201, a.builds[len(a.builds)-1]}
}

func (s *stub) restart(a *stubApp, path []string) reply {
	hit := []api.Container{}
	for _, c := range a.containers {
		if (len(path) < 1 || path[0] == c.Type) && (len(path) < 2 || path[1] == strconv.Itoa(c.Num)) {
			hit = append(hit, c)
		}
	}
	return reply{200, hit}
}

func (s *stub) releases(r *http.Request, a *stubApp, user string, path []string, body map[string]any) reply {
	if r.Method == "POST" {
		to := len(a.releases) - 1
		if n, ok := body["version"].(float64); ok {
			to = int(n)
		}
		if to < 1 {
			return detail(400, "version cannot be below 0")
		}
		if to > len(a.releases) {
			return notFound
		}
		return reply{201, map[string]int{"version": s.release(a, user, fmt.Sprintf("%s rolled back to v%d", user, to))}}
	}
	if len(path) == 1 && path[0] != "" {
		n, _ := strconv.Atoi(strings.TrimPrefix(path[0], "v"))
		if n < 1 || n > len(a.releases) {
			return notFound
		}
		return reply{200, a.releases[n-1]}
	}
	newest := slices.Clone(a.releases)
	slices.Reverse(newest)
	return page(r, newest)
}

func (s *stub) domain(r *http.Request, a *stubApp, path []string, body map[string]any) reply {
	switch r.Method {
	case "GET":
		return page(r, a.domains)
	case "POST":
		name := fmt.Sprint(body["domain"])
		if strings.HasPrefix(name, "*") {
			return invalid("domain", "Adding a wildcard subdomain is currently not supported.")
		}
		for _, d := range a.domains {
			if d.Domain == name {
				return invalid("domain", "This field must be unique.")
			}
		}
		d := api.Domain{App: a.ID, Owner: a.Owner, Domain: name, Created: created, Updated: created}
		a.domains = append(a.domains, d)
		return reply{201, d}
	}
	for i, d := range a.domains {
		if d.Domain == path[0] {
			a.domains = slices.Delete(a.domains, i, i+1)
			return reply{204, nil}
		}
	}
	return notFound
}
