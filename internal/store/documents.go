package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/base64"
	"fmt"
	"io"

	"github.com/deis/deis/internal/paas"
)

// Document is a kind of document that is kept with a build.
type Document string

// The documents of a build: see paas.Build.
const (
	SBOM       Document = "sbom"
	Provenance Document = "provenance"
)

// BuildDocument returns a document of a build. A build that has none of the kind is NotFound.
func (s *Store) BuildDocument(ctx context.Context, build string, kind Document) ([]byte, error) {
	packed, err := one(ctx, s.reads, func(row scanner) (text string, err error) { return text, row.Scan(&text) },
		"SELECT packed FROM build_documents WHERE build = ? AND kind = ?", build, string(kind))
	if err != nil {
		return nil, err
	}
	text, err := unpack(packed)
	if err != nil {
		return nil, fmt.Errorf("%s of build %s: %w", kind, build, err)
	}
	return text, nil
}

// insertDocuments keeps the documents that a build has.
func insertDocuments(ctx context.Context, tx *sql.Tx, b *paas.Build) error {
	for kind, text := range map[Document][]byte{SBOM: b.SBOM, Provenance: b.Provenance} {
		if len(text) == 0 {
			continue
		}
		packed, err := pack(text)
		if err != nil {
			return err
		}
		if err := exec(ctx, tx, "INSERT INTO build_documents (build, kind, packed) VALUES (?, ?, ?)", b.UUID, string(kind), packed); err != nil {
			return err
		}
	}
	return nil
}

// pack makes a document a tenth of its size, and text, which every database keeps alike.
func pack(text []byte) (string, error) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(text); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(buf.Bytes()), nil
}

func unpack(packed string) ([]byte, error) {
	zipped, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
