package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxAnswer bounds an answer that the client reads into memory: more than the
// longest list that a user would wait for.
const maxAnswer = 64 << 20

// Client calls a controller. The zero HTTP client is http.DefaultClient. A
// Client is safe for concurrent use.
type Client struct {
	// URL is the controller's, without path: "http://deis.localhost:8000".
	URL string
	// Token is a user's, BuilderKey that of the daemons; at most one is set.
	Token      string
	BuilderKey string
	UserAgent  string
	HTTP       *http.Client
	// OnAnswer, if set, sees each answer's headers.
	OnAnswer func(http.Header)
}

// Call sends body as JSON (nil: an empty body) to a path like "/v1/apps/" and
// decodes the answer into out (nil: it is dropped). An answer from 400 on
// becomes the error of ParseError.
func (c *Client) Call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.Do(ctx, method, path, body, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("%s %s: answer is not the JSON expected: %w", method, path, err)
	}
	return nil
}

// Do is Call for answers that are streamed: the caller reads and closes the
// body. Statuses from 400 on are errors here too. header may be nil.
func (c *Client) Do(ctx context.Context, method, path string, body any, header http.Header) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: encode: %w", method, path, err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+path, payload)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	req.Header.Set("Content-Type", "application/json")
	if c.UserAgent != "" {
		req.Header.Set("User-Agent", c.UserAgent)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "token "+c.Token)
	}
	if c.BuilderKey != "" {
		req.Header.Set(HeaderBuilderAuth, c.BuilderKey)
	}
	hc := c.HTTP
	if hc == nil {
		hc = http.DefaultClient
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if c.OnAnswer != nil {
		c.OnAnswer(resp.Header)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return nil, fmt.Errorf("%s %s: %s: %w", method, path, resp.Status, err)
		}
		return nil, ParseError(resp.StatusCode, text)
	}
	return resp, nil
}
