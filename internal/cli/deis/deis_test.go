package deis_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deis/deis/internal/cli/deis"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the test binary the command itself for the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"deis": func() {
			os.Exit(deis.Run(context.Background(), os.Args[1:], deis.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

type stubKey struct{}

// TestScripts runs the real command against the stub, one stub for each script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s := newStub()
			env.Defer(s.close)
			env.Values[stubKey{}] = s
			plain, err := url.Parse(s.server.URL)
			if err != nil {
				return err
			}
			secure, err := url.Parse(s.secure.URL)
			if err != nil {
				return err
			}
			home := filepath.Join(env.WorkDir, "home")
			if err := os.MkdirAll(home, 0o755); err != nil {
				return err
			}
			authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.secure.Certificate().Raw})
			if err := os.WriteFile(filepath.Join(env.WorkDir, "authority.pem"), authority, 0o600); err != nil {
				return err
			}
			env.Setenv("HOME", home)
			env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			env.Setenv("PORT", plain.Port())
			env.Setenv("URL", "http://deis.localhost:"+plain.Port())
			env.Setenv("TLS_PORT", secure.Port())
			env.Setenv("MULTI", "one\ntwo \"and\" \\three")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"stub":     cmdStub,
			"asked":    cmdAsked,
			"mode":     cmdMode,
			"exitcode": cmdExitCode,
		},
	})
}

func script(ts *testscript.TestScript) *stub { return ts.Value(stubKey{}).(*stub) }

// cmdStub is "stub <key> [<value>]": see stub.set.
func cmdStub(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(script(ts).set(args[0], strings.Join(args[1:], " ")))
}

// cmdAsked is "asked <method> <path>": the stub has had such a request.
func cmdAsked(ts *testscript.TestScript, neg bool, args []string) {
	s := script(ts)
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for _, r := range s.requests {
		found = found || r == strings.Join(args, " ")
	}
	if found == neg {
		ts.Fatalf("requests: %s", strings.Join(s.requests, "\n"))
	}
}

// cmdMode is "mode <file> <octal>".
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s", args[0], got)
	}
}

// cmdExitCode is "exitcode <n> <command>...".
func cmdExitCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
