package controller

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

// defaultPageSize is that of contract 2.4.
const defaultPageSize = 100

// page reads which part of a list is asked for (contract 2.4).
func (c *call) page() (store.Page, error) {
	q := c.r.URL.Query()
	p := store.Page{Number: 1, Size: defaultPageSize}
	if n, err := strconv.Atoi(q.Get("page_size")); err == nil && n > 0 {
		p.Size = n
	}
	switch text := q.Get("page"); text {
	case "":
	case "last":
		p.Number = 0
	default:
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return p, paas.Errorf(paas.NotFound, "Not found")
		}
		p.Number = n
	}
	return p, nil
}

// listed answers with the page that read returns.
func listed[T, U any](c *call, read func(store.Page) (store.List[T], error), convert func(T) U) error {
	p, err := c.page()
	if err != nil {
		return err
	}
	l, err := read(p)
	if err != nil {
		return err
	}
	answer := api.List[U]{Count: l.Count, Results: make([]U, 0, len(l.Rows))}
	for _, row := range l.Rows {
		answer.Results = append(answer.Results, convert(row))
	}
	if l.Number*p.Size < l.Count {
		answer.Next = c.pageLink(l.Number + 1)
	}
	if l.Number > 1 {
		answer.Previous = c.pageLink(l.Number - 1)
	}
	return c.reply(200, answer)
}

// pageLink is this request's URL with another page number.
func (c *call) pageLink(number int) *string {
	u := url.URL{Scheme: "http", Host: c.r.Host, Path: c.r.URL.Path, RawPath: c.r.URL.RawPath}
	if strings.EqualFold(c.r.Header.Get("X-Forwarded-Proto"), "https") {
		u.Scheme = "https"
	}
	q := c.r.URL.Query()
	q.Set("page", strconv.Itoa(number))
	u.RawQuery = q.Encode()
	link := u.String()
	return &link
}
