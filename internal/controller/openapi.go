package controller

import (
	_ "embed" // the document
	"encoding/json"
	"net/http"
)

// openAPIDocument describes the table of endpoints; a test keeps the two the same,
// and holds every answer of every test against it.
//
//go:embed openapi.json
var openAPIDocument []byte

// openAPI answers with the description of the API (OpenAPI 3.1).
func (c *call) openAPI() error { return c.reply(http.StatusOK, json.RawMessage(openAPIDocument)) }
