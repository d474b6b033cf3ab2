// Command greeter is an example for Deis: a web process built by the Go buildpack,
// with one package of somebody else's and a template that is read at run time.
package main

import (
	"context"
	"errors"
	"html/template"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	page, err := template.ParseFiles("views/index.html")
	if err != nil {
		log.Fatal(err)
	}
	if err := serve(ctx, env("PORT", "5000"), routes(page)); err != nil {
		log.Fatal(err)
	}
	log.Print("ended")
}

// routes greets on / and says on /healthz that it serves.
func routes(page *template.Template) http.Handler {
	router := chi.NewRouter()
	router.Get("/", func(w http.ResponseWriter, _ *http.Request) {
		if err := page.Execute(w, env("POWERED_BY", "Deis")); err != nil {
			log.Print(err)
		}
	})
	router.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("OK\n")) })
	return router
}

// serve serves until ctx ends, then lets requests under way finish.
func serve(ctx context.Context, port string, handler http.Handler) error {
	server := &http.Server{Addr: ":" + port, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), 8*time.Second) // Deis waits for 10
		defer cancel()
		stopped <- server.Shutdown(end)
	}()
	log.Printf("listening on port %s", port)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
