// The end-to-end tests' app: says who it is, echoes WebSockets, answers slowly
// when asked to, and ends requests under way when it is told to stop. With an argument it fails (crash), is a worker
// (work), ends at once (ok) or, in a build, fills a file (blob BYTES). As /bin/sh it runs a line of a Procfile in an
// image that has no shell.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

func main() {
	if len(os.Args) > 1 {
		other(os.Args[1:])
		return
	}
	text, err := os.ReadFile("message")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	host, _ := os.Hostname()
	if os.Getenv("CRASH") == host {
		fmt.Fprintln(os.Stderr, "this instance shall not run")
		os.Exit(4)
	}
	boot := time.Now().UnixNano()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "message=%s release=%s instance=%s greeting=%s boot=%d app=%s\n", text, os.Getenv("DEIS_RELEASE"), host, os.Getenv("GREETING"), boot, os.Getenv("DEIS_APP"))
	})
	http.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("for"))
		time.Sleep(d)
		fmt.Fprintln(w, "slow answer")
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Instance", fmt.Sprintf("%s %d", address(), boot))
		echo(w, r)
	})
	srv := &http.Server{Addr: ":" + os.Getenv("PORT"), ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended := make(chan struct{})
	go func() {
		<-ctx.Done()
		_ = srv.Shutdown(context.Background())
		close(ended)
	}()
	fmt.Println("listening on", os.Getenv("PORT"))
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}

// other is what the program does besides serving.
func other(args []string) {
	switch args[0] {
	case "crash":
		fmt.Fprintln(os.Stderr, "cannot open the flux capacitor")
		os.Exit(3)
	case "work":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		fmt.Println("working")
		<-ctx.Done()
	case "-c": // paas.ShellCommand
		line := strings.Fields(args[2])
		fmt.Fprintln(os.Stderr, syscall.Exec(line[0], line, os.Environ()))
		os.Exit(1)
	case "ok":
		fmt.Println("done")
	case "blob":
		if err := blob(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// blob fills a file with what cannot be compressed, new each time.
func blob(size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Create("/blob")
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.Reader, n); err != nil {
		return err
	}
	return f.Close()
}

// address is the instance's own.
func address() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() && ip.IP.To4() != nil {
			return ip.IP.String()
		}
	}
	return ""
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, b); err != nil {
			return
		}
	}
}
