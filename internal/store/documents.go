package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

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

// keptDocuments is how many builds of an app, the newest, keep log and documents whatever became of their images: a
// log is up to 1 MB, and is asked for soon after the build or not at all.
const keptDocuments = 50

// logGone is in the place of a log that was removed.
const logGone = "The log of this build was removed with its image, which no release needs any more.\n"

// ForgetDocuments removes logs and documents of an app's old builds whose images are not among the kept ones. Builds
// whose image has no digest stay as they are: nobody knows what became of it.
func (s *Store) ForgetDocuments(ctx context.Context, app string, kept map[string]bool) error {
	type build struct{ uuid, digest string }
	old, err := collect(ctx, s.reads, func(row scanner) (b build, err error) { return b, row.Scan(&b.uuid, &b.digest) },
		`SELECT b.uuid, b.digest FROM builds b WHERE b.app = ? AND b.digest <> ''
			AND b.seq <= (SELECT seq FROM builds WHERE app = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)
			AND (EXISTS (SELECT 1 FROM build_logs l WHERE l.build = b.uuid AND l.log NOT IN ('', ?))
				OR EXISTS (SELECT 1 FROM build_documents d WHERE d.build = b.uuid))`, app, app, keptDocuments, logGone)
	if err != nil {
		return err
	}
	old = slices.DeleteFunc(old, func(b build) bool { return kept[b.digest] })
	if len(old) == 0 {
		return nil
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, b := range old {
			err := errors.Join(exec(ctx, tx, "UPDATE build_logs SET log = ? WHERE build = ? AND log <> ''", logGone, b.uuid),
				exec(ctx, tx, "DELETE FROM build_documents WHERE build = ?", b.uuid))
			if err != nil {
				return fmt.Errorf("forget the log of build %s: %w", b.uuid, err)
			}
		}
		return nil
	})
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
