package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/deis/deis/internal/paas"
)

const (
	certColumns = "c.id, u.username, c.common_name, c.chain, c.sealed, c.expires, c.created, c.updated"
	certTables  = "certificates c JOIN users u ON u.id = c.owner_id"
)

func (s *Store) scanCertificate(row scanner) (c paas.Certificate, err error) {
	var sealed string
	if err := row.Scan(&c.ID, &c.Owner, &c.CommonName, &c.Chain, &sealed, (*stamp)(&c.Expires),
		(*stamp)(&c.Created), (*stamp)(&c.Updated)); err != nil {
		return c, err
	}
	key, err := s.vault.open(certRow(c.ID), sealed)
	c.Key = string(key)
	return c, err
}

func certRow(id int64) string { return fmt.Sprintf("certificate %d", id) }

// mayServe holds for the certificates (c, of user u) that may be served for an
// app's host names: those of the app's owner, its collaborators and of
// superusers. Two arguments: the app's UUID, twice.
const mayServe = `(u.superuser OR EXISTS (SELECT 1 FROM apps a WHERE a.uuid = ? AND a.owner_id = u.id) OR
	EXISTS (SELECT 1 FROM app_permissions p WHERE p.app = ? AND p.user_id = u.id))`

// CreateCertificate stores a certificate and fills in identity and times. A
// name is held by one user only; but where it is a host of app (a UUID, or "")
// a certificate of somebody who may not use that app gives way.
func (s *Store) CreateCertificate(ctx context.Context, c *paas.Certificate, app string) error {
	act := paas.Activity{User: c.Owner, App: app, Text: fmt.Sprintf("%s added certificate %s", c.Owner, c.CommonName)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, c.Owner)
		if err != nil {
			return err
		}
		if app != "" {
			if err := exec(ctx, tx, `DELETE FROM certificates WHERE common_name = ? AND id NOT IN
				(SELECT c.id FROM `+certTables+` WHERE c.common_name = ? AND `+mayServe+`)`, c.CommonName, c.CommonName, app, app); err != nil {
				return err
			}
		}
		if taken, err := exists(ctx, tx, "SELECT 1 FROM certificates WHERE common_name = ?", c.CommonName); err != nil || taken {
			return errors.Join(err, unique(taken, "common_name"))
		}
		if c.ID, err = next(ctx, tx, "certificates"); err != nil {
			return err
		}
		c.Created, c.Updated = created()
		return exec(ctx, tx, `INSERT INTO certificates (id, owner_id, common_name, chain, sealed, expires, created, updated)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, c.ID, owner, c.CommonName, c.Chain, s.vault.seal(certRow(c.ID), []byte(c.Key)),
			micros(c.Expires), micros(c.Created), micros(c.Updated))
	})
}

// Certificates lists a user's certificates in the order of insertion.
func (s *Store) Certificates(ctx context.Context, owner string, p Page) (List[paas.Certificate], error) {
	return page(ctx, s.reads, p, s.scanCertificate, certColumns, certTables+" WHERE u.username = ?", "c.id", owner)
}

// Certificate returns a user's certificate by its name.
func (s *Store) Certificate(ctx context.Context, owner, name string) (paas.Certificate, error) {
	return one(ctx, s.reads, s.scanCertificate, "SELECT "+certColumns+" FROM "+certTables+
		" WHERE u.username = ? AND c.common_name = ?", owner, name)
}

// ServedCertificate returns the certificate to serve for a host of an app (a
// UUID; "" for the platform's own hosts, where only those of superusers count).
func (s *Store) ServedCertificate(ctx context.Context, app, name string) (paas.Certificate, error) {
	return one(ctx, s.reads, s.scanCertificate, "SELECT "+certColumns+" FROM "+certTables+
		" WHERE c.common_name = ? AND "+mayServe, name, app, app)
}

// CertificateEnds returns the names of certificates that end within a span, the first ones, with
// their ends.
func (s *Store) CertificateEnds(ctx context.Context, from, to time.Time, limit int) (map[string]time.Time, error) {
	type end struct {
		name string
		at   time.Time
	}
	list, err := collect(ctx, s.reads, func(row scanner) (e end, err error) {
		err = row.Scan(&e.name, (*stamp)(&e.at))
		return e, err
	}, "SELECT common_name, expires FROM certificates WHERE expires BETWEEN ? AND ? ORDER BY expires LIMIT ?",
		micros(from), micros(to), limit)
	ends := map[string]time.Time{}
	for _, e := range list {
		ends[e.name] = e.at
	}
	return ends, err
}

// DeleteCertificate removes a user's certificate.
func (s *Store) DeleteCertificate(ctx context.Context, owner, name string) error {
	act := paas.Activity{User: owner, Text: fmt.Sprintf("%s removed certificate %s", owner, name)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, `DELETE FROM certificates WHERE common_name = ? AND owner_id =
			(SELECT id FROM users WHERE username = ?)`, name, owner)
	})
}
