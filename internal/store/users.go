package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/deis/deis/internal/paas"
)

const userColumns = "u.id, u.username, u.email, u.first_name, u.last_name, u.superuser, u.staff, u.active, u.last_login, u.joined"

func scanUser(row scanner) (u paas.User, err error) {
	return u, row.Scan(&u.ID, &u.Username, &u.Email, &u.FirstName, &u.LastName, &u.Superuser, &u.Staff, &u.Active,
		(*stamp)(&u.LastLogin), (*stamp)(&u.Joined))
}

// CreateUser registers a user. While there is no superuser, the new one is it
// (contract 3.1).
func (s *Store) CreateUser(ctx context.Context, u paas.User, password string) (paas.User, error) {
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return u, err
	}
	act := paas.Activity{User: u.Username, Text: u.Username + " registered"}
	err = s.mutate(ctx, act, func(tx *sql.Tx, a *paas.Activity) error {
		if taken, err := exists(ctx, tx, "SELECT 1 FROM users WHERE username = ?", u.Username); err != nil || taken {
			return errors.Join(err, unique(taken, "username"))
		}
		admin, err := exists(ctx, tx, "SELECT 1 FROM users WHERE superuser LIMIT 1")
		if err != nil {
			return err
		}
		seq, err := next(ctx, tx, "users")
		if err != nil {
			return err
		}
		id, t := newUUID(), now()
		err = exec(ctx, tx, `INSERT INTO users (id, seq, username, password, email, first_name, last_name,
			superuser, staff, active, token_serial, last_login, joined) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, TRUE, 1, ?, ?)`,
			id, seq, u.Username, hash, u.Email, u.FirstName, u.LastName, !admin, !admin, t, t)
		if err != nil {
			return err
		}
		u, err = one(ctx, tx, scanUser, "SELECT "+userColumns+" FROM users u WHERE u.id = ?", id)
		return err
	})
	return u, err
}

// unique is the error for a taken name, nil where it is not taken.
func unique(taken bool, field string) error {
	if !taken {
		return nil
	}
	return paas.FieldError(field, paas.MsgUnique)
}

// credentials is what a login needs of a user.
type credentials struct {
	id, hash string
	serial   int64
	active   bool
}

func scanCredentials(row scanner) (c credentials, err error) {
	return c, row.Scan(&c.id, &c.hash, &c.serial, &c.active)
}

func (s *Store) credentials(ctx context.Context, username string) (credentials, error) {
	return one(ctx, s.reads, scanCredentials, "SELECT id, password, token_serial, active FROM users WHERE username = ?", username)
}

// CheckPassword reports whether this is the user's password. It is false, after
// the same time, for a user who does not exist.
func (s *Store) CheckPassword(ctx context.Context, username, password string) (bool, error) {
	c, err := s.credentials(ctx, username)
	if err != nil && paas.CodeOf(err) != paas.NotFound {
		return false, err
	}
	return s.hasher.verify(ctx, password, c.hash)
}

// loggedIn follows a name in the row of activity of a login.
const loggedIn = " logged in"

// Login returns the user's token, the same one each time. The error is Invalid
// for a wrong password, an unknown and an inactive user alike.
func (s *Store) Login(ctx context.Context, username, password string) (string, error) {
	ok, err := s.CheckPassword(ctx, username, password)
	if err != nil {
		return "", err
	}
	refused := paas.FieldError("non_field_errors", "Unable to log in with provided credentials.")
	if !ok {
		return "", refused
	}
	var token string
	act := paas.Activity{User: username, Text: username + loggedIn}
	err = s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		c, err := one(ctx, tx, scanCredentials, "SELECT id, password, token_serial, active FROM users WHERE username = ?", username)
		if err != nil || !c.active {
			return refused
		}
		token = s.vault.token(c.id, c.serial)
		if err := exec(ctx, tx, `INSERT INTO tokens (hash, user_id, created) VALUES (?, ?, ?) ON CONFLICT (user_id) DO NOTHING`,
			tokenHash(token), c.id, now()); err != nil {
			return err
		}
		return exec(ctx, tx, "UPDATE users SET last_login = ? WHERE id = ?", now(), c.id)
	})
	return token, err
}

// UserByToken returns the token's user; the errors are Unauthorized.
func (s *Store) UserByToken(ctx context.Context, token string) (paas.User, error) {
	u, err := one(ctx, s.reads, scanUser, "SELECT "+userColumns+` FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.hash = ?`,
		tokenHash(token))
	switch {
	case paas.CodeOf(err) == paas.NotFound:
		return u, paas.Errorf(paas.Unauthorized, "Invalid token")
	case err == nil && !u.Active:
		return u, paas.Errorf(paas.Unauthorized, "User inactive or deleted")
	}
	return u, err
}

// UserByName returns a user or NotFound.
func (s *Store) UserByName(ctx context.Context, username string) (paas.User, error) {
	return one(ctx, s.reads, scanUser, "SELECT "+userColumns+" FROM users u WHERE u.username = ?", username)
}

// Users lists all users in the order of registration.
func (s *Store) Users(ctx context.Context, p Page) (List[paas.User], error) {
	return page(ctx, s.reads, p, scanUser, userColumns, "users u", "u.seq")
}

// Superusers lists those in the order of registration.
func (s *Store) Superusers(ctx context.Context, p Page) (List[paas.User], error) {
	return page(ctx, s.reads, p, scanUser, userColumns, "users u WHERE u.superuser", "u.seq")
}

// SetSuperuser makes a user superuser and staff, or neither.
func (s *Store) SetSuperuser(ctx context.Context, actor, username string, super bool) error {
	text := fmt.Sprintf("%s made %s an admin", actor, username)
	if !super {
		text = fmt.Sprintf("%s took admin rights from %s", actor, username)
	}
	return s.mutate(ctx, paas.Activity{User: actor, Text: text}, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "UPDATE users SET superuser = ?, staff = ? WHERE username = ?", super, super, username)
	})
}

// SetPassword replaces a user's password. The token stays (contract 3.3).
func (s *Store) SetPassword(ctx context.Context, actor, username, password string) error {
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	act := paas.Activity{User: actor, Text: fmt.Sprintf("%s set the password of %s", actor, username)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "UPDATE users SET password = ? WHERE username = ?", hash, username)
	})
}

// NewToken replaces a user's token; the old one is dead at once.
func (s *Store) NewToken(ctx context.Context, actor, username string) (token string, err error) {
	act := paas.Activity{User: actor, Text: fmt.Sprintf("%s replaced the token of %s", actor, username)}
	err = s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		c, err := one(ctx, tx, scanCredentials, "SELECT id, password, token_serial, active FROM users WHERE username = ?", username)
		if err != nil {
			return err
		}
		token, err = s.replaceToken(ctx, tx, c)
		return err
	})
	return token, err
}

// NewTokens replaces every user's token.
func (s *Store) NewTokens(ctx context.Context, actor string) error {
	act := paas.Activity{User: actor, Text: actor + " replaced all tokens"}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		all, err := collect(ctx, tx, scanCredentials, "SELECT id, password, token_serial, active FROM users")
		for _, c := range all {
			if err == nil {
				_, err = s.replaceToken(ctx, tx, c)
			}
		}
		return err
	})
}

func (s *Store) replaceToken(ctx context.Context, tx *sql.Tx, c credentials) (string, error) {
	if err := exec(ctx, tx, "UPDATE users SET token_serial = ? WHERE id = ?", c.serial+1, c.id); err != nil {
		return "", err
	}
	token := s.vault.token(c.id, c.serial+1)
	return token, exec(ctx, tx, `INSERT INTO tokens (hash, user_id, created) VALUES (?, ?, ?)
		ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, created = excluded.created`, tokenHash(token), c.id, now())
}

// DeleteUser removes a user with keys, certificates, permissions and token.
// What he made in other people's apps goes to their owners. It is a Conflict
// while he owns apps.
func (s *Store) DeleteUser(ctx context.Context, actor, username string) error {
	act := paas.Activity{User: actor, Text: fmt.Sprintf("%s deleted user %s", actor, username)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		id, err := userID(ctx, tx, username)
		if err != nil {
			return err
		}
		if owns, err := exists(ctx, tx, "SELECT 1 FROM apps WHERE owner_id = ? LIMIT 1", id); err != nil {
			return err
		} else if owns {
			return paas.Errorf(paas.Conflict, "%s still has applications assigned. Delete or transfer ownership", username)
		}
		for _, table := range []string{"configs", "builds", "rollouts", "releases", "domains", "pushes"} {
			if err := exec(ctx, tx, "UPDATE "+table+" SET owner_id = (SELECT a.owner_id FROM apps a WHERE a.uuid = "+
				table+".app) WHERE owner_id = ?", id); err != nil {
				return err
			}
		}
		return exec(ctx, tx, "DELETE FROM users WHERE id = ?", id)
	})
}

// userID looks a username up; unknown is NotFound.
func userID(ctx context.Context, tx *sql.Tx, username string) (string, error) {
	return one(ctx, tx, func(row scanner) (id string, err error) { return id, row.Scan(&id) },
		"SELECT id FROM users WHERE username = ?", username)
}

const (
	keyColumns = "k.uuid, u.username, k.id, k.public, k.fingerprint, k.created, k.updated"
	keyTables  = "keys k JOIN users u ON u.id = k.owner_id"
)

func scanKey(row scanner) (k paas.Key, err error) {
	return k, row.Scan(&k.UUID, &k.Owner, &k.ID, &k.Public, &k.Fingerprint, (*stamp)(&k.Created), (*stamp)(&k.Updated))
}

// CreateKey stores a user's key and fills in identity and times. A fingerprint
// that anyone has registered is refused.
func (s *Store) CreateKey(ctx context.Context, k *paas.Key) error {
	act := paas.Activity{User: k.Owner, Text: fmt.Sprintf("%s added key %s", k.Owner, k.ID)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, k.Owner)
		if err != nil {
			return err
		}
		if taken, err := exists(ctx, tx, "SELECT 1 FROM keys WHERE fingerprint = ?", k.Fingerprint); err != nil || taken {
			return errors.Join(err, unique(taken, "public"))
		}
		if taken, err := exists(ctx, tx, "SELECT 1 FROM keys WHERE owner_id = ? AND id = ?", owner, k.ID); err != nil || taken {
			return errors.Join(err, unique(taken, "id"))
		}
		seq, err := next(ctx, tx, "keys")
		if err != nil {
			return err
		}
		k.UUID = newUUID()
		k.Created, k.Updated = created()
		return exec(ctx, tx, `INSERT INTO keys (uuid, seq, owner_id, id, public, fingerprint, created, updated)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, k.UUID, seq, owner, k.ID, k.Public, k.Fingerprint, micros(k.Created), micros(k.Updated))
	})
}

// Keys lists a user's keys in the order of insertion.
func (s *Store) Keys(ctx context.Context, owner string, p Page) (List[paas.Key], error) {
	return page(ctx, s.reads, p, scanKey, keyColumns, keyTables+" WHERE u.username = ?", "k.seq", owner)
}

// Key returns a user's key by its id.
func (s *Store) Key(ctx context.Context, owner, id string) (paas.Key, error) {
	return one(ctx, s.reads, scanKey, "SELECT "+keyColumns+" FROM "+keyTables+" WHERE u.username = ? AND k.id = ?", owner, id)
}

// KeyByFingerprint returns the key that anyone has registered. Compare the
// whole key: MD5 fingerprints can be made to collide.
func (s *Store) KeyByFingerprint(ctx context.Context, fingerprint string) (paas.Key, error) {
	return one(ctx, s.reads, scanKey, "SELECT "+keyColumns+" FROM "+keyTables+" WHERE k.fingerprint = ? AND u.active", fingerprint)
}

// DeleteKey removes a user's key.
func (s *Store) DeleteKey(ctx context.Context, owner, id string) error {
	act := paas.Activity{User: owner, Text: fmt.Sprintf("%s removed key %s", owner, id)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "DELETE FROM keys WHERE id = ? AND owner_id = (SELECT id FROM users WHERE username = ?)", id, owner)
	})
}
