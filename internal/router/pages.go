package router

import (
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"
)

// retryAfter is what a 503 suggests to clients, in seconds.
const retryAfter = 5

// page is an answer of the router itself. It says what is known and names
// nothing that is inside.
type page struct {
	status int
	text   string
}

var (
	pageBadBody      = page{http.StatusBadRequest, "The request's body could not be read."}
	pageUnknownHost  = page{http.StatusNotFound, "There is no app at this address."}
	pageMethod       = page{http.StatusMethodNotAllowed, "This method is not served here."}
	pageMisdirected  = page{http.StatusMisdirectedRequest, "This connection was made for another host. Please connect again."}
	pageRefused      = page{http.StatusBadGateway, "The app does not accept connections."}
	pageBroken       = page{http.StatusBadGateway, "The app broke off without a proper answer."}
	pageNoInstance   = page{http.StatusServiceUnavailable, "The app exists, but no instance of it is running."}
	pageNoController = page{http.StatusServiceUnavailable, "The controller is not running. Apps are served nevertheless."}
	pageStarting     = page{http.StatusServiceUnavailable, "The platform is starting and does not know its apps yet."}
	pageTimeout      = page{http.StatusGatewayTimeout, "The app took too long to answer."}
)

// answer sends a page: HTML to browsers, text to others.
func (x *exchange) answer(r *http.Request, p page) {
	h := x.w.Header()
	clear(h)
	h["X-Request-Id"] = []string{x.id}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	title := fmt.Sprintf("%d %s", p.status, http.StatusText(p.status))
	body := fmt.Sprintf("%s\n%s\nRequest id: %s\n", title, p.text, x.id)
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = fmt.Sprintf(pageHTML, title, title, html.EscapeString(p.text), html.EscapeString(x.id))
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(p.status)
	if r.Method != http.MethodHead {
		// The client is gone if this fails; there is nobody else to tell.
		_, _ = x.w.Write([]byte(body))
	}
}

const pageHTML = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>%s</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222}
h1{font-size:1.4em}small{color:#666}</style></head>
<body><h1>%s</h1><p>%s</p><p><small>Request id: %s</small></p></body></html>
`
