// Package daemon is the frame that all daemons share: settings from flags and
// the environment, signals, the log, listeners handed over by the supervisor,
// health and metrics on a private address.
package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/deis/deis/internal/paas"
)

// Version is the platform's; the linker sets it.
var Version = "dev"

// ListenFDs is the environment variable by which a supervisor hands over open
// listening sockets: "name:fd,name:fd". A socket that outlives the process
// behind it keeps its clients waiting instead of refusing them while the
// process is started again. (systemd's LISTEN_FDS names the child's pid, which
// a parent that uses os/exec does not know in time.)
const ListenFDs = "DEIS_LISTEN_FDS"

// PlatformID is the short name of the platform whose state lies below root, an
// absolute path. It tells apart what the platforms of one host have in common
// name spaces: containerd namespaces, bridges, nftables tables, cgroups.
func PlatformID(root string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(root)))[:6]
}

// MakeKey makes builder.key below a platform's root, the key that its daemons share, unless it is there. A
// blank file is none: a power cut may leave one, of zeros too.
func MakeKey(root string) error {
	path := filepath.Join(root, "builder.key")
	key, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(bytes.Trim(key, "\x00 \t\r\n")) > 0 {
		return nil
	}
	key = make([]byte, 32)
	rand.Read(key)
	return WriteFile(path, []byte(hex.EncodeToString(key)+"\n"), 0o600)
}

// shutdownTime bounds how long the private HTTP server may finish answers.
const shutdownTime = 2 * time.Second

// Daemon is one process's frame. It is made by Main.
type Daemon struct {
	Name string
	Log  *slog.Logger
	// Metrics is served at /metrics on the private address.
	Metrics *prometheus.Registry

	flags     *flag.FlagSet
	level     slog.LevelVar
	inherited map[string]net.Listener
	admin     string
	errs      []error
}

// Main runs a daemon until it ends by itself, or SIGINT or SIGTERM ends ctx,
// and exits: 0 after a clean end, 1 after an error, 2 on bad settings. run
// declares its settings, calls Parse, opens its listeners and works until ctx
// ends. args are the arguments without the program's name; --version alone is answered.
func Main(name string, args []string, run func(ctx context.Context, d *Daemon, args []string) error) {
	execute(name, args, run, func(d *Daemon, err error) { d.Log.Error("ended", "error", err.Error()) })
}

// Command is Main for what a person runs and waits for: an error is a line for people.
func Command(name string, args []string, run func(ctx context.Context, d *Daemon, args []string) error) {
	execute(name, args, run, func(_ *Daemon, err error) {
		text := err.Error()
		if known, ok := errors.AsType[*paas.Error](err); ok && known.Text() != "" {
			text = known.Text()
		}
		fmt.Fprintln(os.Stderr, " !     "+strings.ReplaceAll(text, "\n", "\n !     "))
	})
}

func execute(name string, args []string, run func(ctx context.Context, d *Daemon, args []string) error, report func(*Daemon, error)) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-version") {
		fmt.Println(name, Version)
		return
	}
	d := newDaemon(name)
	err := run(ctx, d, args)
	usage := &usageError{}
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(2)
	case err != nil && !(errors.Is(err, context.Canceled) && ctx.Err() != nil):
		report(d, err)
		os.Exit(1)
	}
}

func newDaemon(name string) *Daemon {
	d := &Daemon{Name: name, Metrics: prometheus.NewRegistry(), flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	d.Log = slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: &d.level})).With("daemon", name)
	d.Metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.String(&d.admin, "admin-addr", "", "private `address` for /healthz and /metrics; none if empty")
	d.setting("log-level", "info", "debug, info, warn or error", func(s string) error {
		return d.level.UnmarshalText([]byte(s))
	})
	return d
}

type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// envName is the variable behind a flag: http-addr is DEIS_HTTP_ADDR.
func envName(flagName string) string {
	return "DEIS_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// setting declares one setting: default, then environment, then flag.
func (d *Daemon) setting(name, def, usage string, set func(string) error) {
	env := envName(name)
	value := def
	if v, ok := os.LookupEnv(env); ok && v != "" {
		value = v
	}
	if value != "" {
		if err := set(value); err != nil {
			d.errs = append(d.errs, fmt.Errorf("%s=%q: %w", env, value, err))
		}
	}
	if def != "" {
		usage += fmt.Sprintf(" (default %q)", def)
	}
	d.flags.Func(name, usage+"; "+env, set)
}

// String declares a setting that is any text.
func (d *Daemon) String(p *string, name, def, usage string) {
	d.setting(name, def, usage, func(s string) error { *p = s; return nil })
}

// Enum declares a setting that is one of a few words.
func (d *Daemon) Enum(p *string, name, def, usage string, words ...string) {
	d.setting(name, def, usage, func(s string) error {
		for _, w := range words {
			if s == w {
				*p = s
				return nil
			}
		}
		return fmt.Errorf("not one of %s", strings.Join(words, ", "))
	})
}

// Duration declares a setting like "30s".
func (d *Daemon) Duration(p *time.Duration, name string, def time.Duration, usage string) {
	d.setting(name, def.String(), usage, func(s string) error {
		v, err := time.ParseDuration(s)
		if err != nil || v < 0 {
			return errors.New("not a duration like 30s or 5m")
		}
		*p = v
		return nil
	})
}

// Int declares a setting that is a whole number from least up.
func (d *Daemon) Int(p *int, name string, def, least int, usage string) {
	d.setting(name, strconv.Itoa(def), usage, func(s string) error {
		v, err := strconv.Atoi(s)
		if err != nil || v < least {
			return fmt.Errorf("not a number from %d up", least)
		}
		*p = v
		return nil
	})
}

// Float declares a setting that is a number greater than zero, or zero.
func (d *Daemon) Float(p *float64, name, def, usage string) {
	d.setting(name, def, usage, func(s string) error {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v >= 0) || math.IsInf(v, 0) {
			return errors.New("not a number like 0.5 or 2")
		}
		*p = v
		return nil
	})
}

// Bytes declares a setting that is a size: a number with K, M or G.
func (d *Daemon) Bytes(p *int64, name, def, usage string) {
	d.setting(name, def, usage, func(s string) error {
		n, err := parseBytes(s)
		if err != nil {
			return err
		}
		*p = n
		return nil
	})
}

func parseBytes(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToUpper(s), "KMG")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[strings.ToUpper(s)[len(digits):]]
	if err != nil || n < 0 || !known || n > (1<<62)>>shift {
		return 0, errors.New("not a size like 500M or 2G")
	}
	return n << shift, nil
}

// Switch declares a flag that is off unless it is given. It is about one call, so no variable sets it.
func (d *Daemon) Switch(p *bool, name, usage string) {
	d.flags.BoolVar(p, name, false, usage)
}

// Parse reads the flags and opens what the supervisor handed over. It reports
// every bad setting at once. It returns the arguments that are no flags.
func (d *Daemon) Parse(args []string) ([]string, error) {
	if err := d.flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, &usageError{err}
	}
	var err error
	if d.inherited, err = inherit(os.Getenv(ListenFDs)); err != nil {
		d.errs = append(d.errs, fmt.Errorf("%s: %w", ListenFDs, err))
	}
	// What this process starts must not believe that the sockets are its own.
	os.Unsetenv(ListenFDs)
	if len(d.errs) > 0 {
		return nil, &usageError{errors.Join(d.errs...)}
	}
	return d.flags.Args(), nil
}

func inherit(list string) (map[string]net.Listener, error) {
	got := map[string]net.Listener{}
	for item := range strings.SplitSeq(list, ",") {
		if item == "" {
			continue
		}
		name, num, _ := strings.Cut(item, ":")
		fd, err := strconv.ParseUint(num, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not name:fd", item)
		}
		f := os.NewFile(uintptr(fd), name)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%q is no listening socket: %w", item, err)
		}
		got[name] = l
	}
	return got, nil
}

// Listen returns the listener that the supervisor handed over under a name, or
// opens addr: host:port, or the path of a unix socket, which it replaces.
func (d *Daemon) Listen(name, addr string) (net.Listener, error) {
	if l, ok := d.inherited[name]; ok {
		delete(d.inherited, name)
		return l, nil
	}
	if strings.HasPrefix(addr, "/") {
		if err := os.Remove(addr); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s listener: %w", name, err)
		}
		return net.Listen("unix", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s listener: %w", name, err)
	}
	return l, nil
}

// ServeAdmin serves /healthz and /metrics on the private address until ctx
// ends; without an address it only waits. health is called for each /healthz;
// its error is answered with 503 and its text.
func (d *Daemon) ServeAdmin(ctx context.Context, health func() error) error {
	if d.admin == "" && d.inherited["admin"] == nil {
		<-ctx.Done()
		return nil
	}
	l, err := d.Listen("admin", d.admin)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := health(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "OK")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: shutdownTime}
	return ServeHTTP(ctx, srv, l, shutdownTime)
}

// ServeHTTP serves until ctx ends, then lets the answers under way finish for
// at most grace. It returns nil after such an end.
func ServeHTTP(ctx context.Context, srv *http.Server, l net.Listener, grace time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return srv.Close()
	}
	return nil
}
