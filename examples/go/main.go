// Command app is an example for Deis: a web process with a WebSocket, and a
// worker. It uses the standard library only.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	run := map[string]func(context.Context) error{"web": web, "worker": worker}
	if len(os.Args) != 2 || run[os.Args[1]] == nil {
		log.Fatal("usage: app web|worker")
	}
	if err := run[os.Args[1]](ctx); err != nil {
		log.Fatal(err)
	}
}

// web serves until ctx ends, then lets requests under way finish.
func web(ctx context.Context) error {
	port := os.Getenv("PORT")
	if port == "" {
		port = "5000"
	}
	sockets, closeSockets := context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", hello)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "OK") })
	mux.HandleFunc("GET /echo", func(w http.ResponseWriter, r *http.Request) { echo(sockets, w, r) })
	srv := &http.Server{Addr: ":" + port, Handler: mux, ReadHeaderTimeout: 10 * time.Second}

	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		log.Print("stopping")
		end, cancel := context.WithTimeout(context.Background(), 8*time.Second) // Deis waits for 10
		defer cancel()
		closeSockets()
		done <- srv.Shutdown(end)
	}()
	log.Printf("listening on port %s", port)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

func hello(w http.ResponseWriter, r *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		host = "an unknown host"
	}
	fmt.Fprintf(w, "Hello from %s %s on %s.\n", env("DEIS_APP", "this app"), env("DEIS_RELEASE", "no release"), host)
	log.Printf("%s %s", r.Method, r.URL.Path)
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// worker does its work once a second.
func worker(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		log.Printf("job %d done", n)
		select {
		case <-ctx.Done():
			log.Print("stopping")
			return nil
		case <-tick.C:
		}
	}
}
