// Command static-server serves the files of a directory over HTTP on $PORT.
//
// Files in an image all carry the same date, so it sends no Last-Modified: a
// browser would keep a stale file after a release. The ETag is the hash of the
// content. Names that begin with a dot are not served, except .well-known (RFC
// 8615); directories are not listed.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"mime"
	"net/http"
	"os"
	"os/signal"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	headerTime   = 10 * time.Second
	idleTime     = 2 * time.Minute
	shutdownTime = 8 * time.Second // Deis kills after 10
)

// types are those that Go does not know by itself without the system's table.
var types = map[string]string{
	".atom": "application/atom+xml", ".csv": "text/csv; charset=utf-8", ".eot": "application/vnd.ms-fontobject",
	".gz": "application/gzip", ".ico": "image/x-icon", ".map": "application/json", ".md": "text/markdown; charset=utf-8",
	".mp3": "audio/mpeg", ".mp4": "video/mp4", ".ogg": "audio/ogg", ".otf": "font/otf", ".rss": "application/rss+xml",
	".ttf": "font/ttf", ".txt": "text/plain; charset=utf-8", ".wav": "audio/wav", ".webm": "video/webm",
	".webmanifest": "application/manifest+json", ".woff": "font/woff", ".woff2": "font/woff2", ".zip": "application/zip",
}

// route answers paths that match with one file when nothing else is there.
type route struct{ pattern, file string }

// matches reports whether the pattern matches: a "**" at its end stands for any
// rest, the other elements are those of path.Match.
func (r route) matches(name string) bool {
	if prefix, ok := strings.CutSuffix(r.pattern, "**"); ok {
		return strings.HasPrefix(name, prefix)
	}
	ok, err := path.Match(r.pattern, name)
	return err == nil && ok
}

// site is the handler. Its fields must not change while it serves; it may serve
// many requests at a time.
type site struct {
	files     fs.FS
	errorPage string // what goes with status 404
	cleanURLs bool   // /about is about.html
	routes    []route

	tags sync.Map // tagKey to ETag
}

// tagKey names a file's content as far as the file system tells it apart.
type tagKey struct {
	name string
	size int64
	time time.Time
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name, redirect := s.find(r.URL.Path)
	if redirect != "" {
		if r.URL.RawQuery != "" {
			redirect += "?" + r.URL.RawQuery
		}
		w.Header().Set("Location", redirect)
		w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	if name == "" || s.serve(w, r, name) != nil {
		s.notFound(w, r)
	}
}

// find returns the file for a path of a URL, or where the path should be
// redirected to (relative, so that it stays on this host), or neither.
func (s *site) find(urlPath string) (name, redirect string) {
	name = strings.TrimPrefix(path.Clean("/"+urlPath), "/")
	if hidden(name) || strings.ContainsRune(name, 0) {
		return "", ""
	}
	directory := name == "" || strings.HasSuffix(urlPath, "/")
	candidates := []string{name, path.Join(name, "index.html")}
	if directory {
		candidates = candidates[1:]
	}
	if s.cleanURLs && name != "" {
		candidates = append(candidates, name+".html")
	}
	for _, candidate := range candidates {
		if !s.isFile(candidate) {
			continue
		}
		if !directory && candidate == path.Join(name, "index.html") {
			return "", "./" + path.Base(name) + "/"
		}
		return candidate, ""
	}
	for _, route := range s.routes {
		if route.matches("/"+name) && s.isFile(route.file) {
			return route.file, ""
		}
	}
	return "", ""
}

// hidden reports whether an element of the path is a dotfile.
func hidden(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(element, ".") && element != ".well-known" {
			return true
		}
	}
	return false
}

func (s *site) isFile(name string) bool {
	info, err := fs.Stat(s.files, name)
	return err == nil && info.Mode().IsRegular()
}

// serve answers with a file; ranges and conditions are net/http's. Without an
// error something has been written.
func (s *site) serve(w http.ResponseWriter, r *http.Request, name string) error {
	file, tag, err := s.open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	setType(w, name)
	w.Header().Set("ETag", tag)
	http.ServeContent(w, r, name, time.Time{}, file)
	return nil
}

// notFound answers with status 404, and the error page where there is one.
func (s *site) notFound(w http.ResponseWriter, r *http.Request) {
	file, _, err := s.open(s.errorPage)
	if err != nil {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	defer file.Close()
	setType(w, s.errorPage)
	w.WriteHeader(http.StatusNotFound)
	if r.Method == http.MethodGet {
		_, _ = io.Copy(w, file) // the client may be gone
	}
}

// open opens a regular file and returns it with its ETag. The caller closes it.
func (s *site) open(name string) (io.ReadSeekCloser, string, error) {
	opened, err := s.files.Open(name)
	if err != nil {
		return nil, "", err
	}
	info, err := opened.Stat()
	file, ok := opened.(io.ReadSeekCloser)
	if err != nil || !ok || !info.Mode().IsRegular() {
		opened.Close()
		return nil, "", fmt.Errorf("%s is no regular file", name)
	}
	tag, err := s.tag(tagKey{name: name, size: info.Size(), time: info.ModTime()}, file)
	if err != nil {
		opened.Close()
		return nil, "", err
	}
	return file, tag, nil
}

// tag returns the hash of a file, which is read once.
func (s *site) tag(key tagKey, file io.ReadSeeker) (string, error) {
	if tag, ok := s.tags.Load(key); ok {
		return tag.(string), nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	tag := `"` + hex.EncodeToString(hash.Sum(nil)[:16]) + `"`
	s.tags.Store(key, tag)
	return tag, nil
}

// setType sets the content type that belongs to the name's ending; without one
// net/http looks at the content.
func setType(w http.ResponseWriter, name string) {
	ending := strings.ToLower(path.Ext(name))
	contentType, ok := types[ending]
	if !ok {
		contentType = mime.TypeByExtension(ending)
	}
	if contentType != "" {
		w.Header().Set("Content-Type", contentType)
	}
}

// newSite reads the command line.
func newSite(args []string) (*site, error) {
	s := &site{}
	flags := flag.NewFlagSet("static-server", flag.ContinueOnError)
	dir := flags.String("root", ".", "directory to serve")
	flags.StringVar(&s.errorPage, "error-page", "404.html", "file for status 404")
	flags.BoolVar(&s.cleanURLs, "clean-urls", false, "serve name.html as name")
	flags.Func("route", "PATTERN=FILE: serve FILE for paths that match and name no file", func(text string) error {
		pattern, file, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("want PATTERN=FILE")
		}
		s.routes = append(s.routes, route{pattern: pattern, file: strings.TrimPrefix(file, "/")})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	s.errorPage = strings.TrimPrefix(s.errorPage, "/")
	root, err := os.OpenRoot(*dir) // symbolic links that lead out of it are not followed
	if err != nil {
		return nil, fmt.Errorf("directory to serve: %w", err)
	}
	s.files = root.FS()
	return s, nil
}

// run serves until ctx ends, then lets requests under way finish.
func run(ctx context.Context, port string, handler http.Handler) error {
	server := &http.Server{Addr: ":" + port, Handler: handler, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		stopped <- server.Shutdown(end)
	}()
	log.Printf("serving on port %s", port)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	port := os.Getenv("PORT")
	if port == "" {
		port = "5000"
	}
	s, err := newSite(os.Args[1:])
	if err == nil {
		err = run(ctx, port, s)
	}
	if err != nil {
		log.Fatal(err)
	}
}
