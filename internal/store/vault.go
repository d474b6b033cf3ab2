package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"
)

const keySize = 32

// vault seals what must not lie readable on the disk, and makes tokens. Its
// keys come from the one file beside the database.
type vault struct {
	aead     cipher.AEAD
	tokenKey []byte
}

// openVault reads the key file; with create it makes one where there is none.
func openVault(path string, create bool) (*vault, error) {
	secret, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err = makeKey(path); err == nil {
			secret, err = readKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret key of the store: %w", err)
	}
	dataKey, err := hkdf.Key(sha256.New, secret, nil, "deis store: values", keySize)
	if err != nil {
		return nil, err
	}
	tokenKey, err := hkdf.Key(sha256.New, secret, nil, "deis store: tokens", keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &vault{aead: aead, tokenKey: tokenKey}, nil
}

func readKey(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("%s does not hold %d bytes in base64", path, keySize)
	}
	return key, nil
}

// makeKey writes a new key so that no crash leaves a part of one.
func makeKey(path string) error {
	key := make([]byte, keySize)
	rand.Read(key)
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// seal encrypts for one place only: the identity of the row is authenticated
// with it, so that a value copied to another row does not open.
func (v *vault) seal(row string, plain []byte) string {
	return base64.StdEncoding.EncodeToString(v.aead.Seal(nil, nil, plain, []byte(row)))
}

func (v *vault) open(row, sealed string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(sealed)
	if err == nil {
		b, err = v.aead.Open(nil, nil, b, []byte(row))
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt %s: wrong secret.key or damaged row: %w", row, err)
	}
	return b, nil
}

// token returns a user's token: 40 hex digits, the same for each serial, so
// that each login gives the same (contract 3.2) while only a hash is stored.
func (v *vault) token(userID string, serial int64) string {
	mac := hmac.New(sha256.New, v.tokenKey)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(serial)))
	mac.Write([]byte(userID))
	return hex.EncodeToString(mac.Sum(nil)[:20])
}

func tokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Cost of a password hash: the least that OWASP recommends for argon2id
// (m=19 MiB, t=2, p=1), some 30 ms on a small server.
const (
	argonMemory = 19 * 1024 // KiB
	argonTime   = 2
	argonSalt   = 16
	argonKey    = 32
)

// hasher makes password hashes, a few at a time: each needs argonMemory, and
// logins must not crowd out everything else.
type hasher struct{ slots chan struct{} }

func newHasher() hasher { return hasher{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))} }

func (h hasher) key(ctx context.Context, password string, salt []byte) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.slots }()
	return argon2.IDKey([]byte(password), salt, argonTime, argonMemory, 1, argonKey), nil
}

const argonPrefix = "$argon2id$v=19$m=19456,t=2,p=1$"

// hash returns a password's hash in PHC form.
func (h hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	key, err := h.key(ctx, password, salt)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding
	return argonPrefix + b64.EncodeToString(salt) + "$" + b64.EncodeToString(key), nil
}

// verify compares a password with a hash. It takes as long for a hash that is
// none, so that an answer's time does not tell which users there are.
func (h hasher) verify(ctx context.Context, password, hash string) (bool, error) {
	rest, known := strings.CutPrefix(hash, argonPrefix)
	saltText, keyText, _ := strings.Cut(rest, "$")
	salt, err1 := base64.RawStdEncoding.DecodeString(saltText)
	want, err2 := base64.RawStdEncoding.DecodeString(keyText)
	if !known || err1 != nil || err2 != nil {
		salt, want = make([]byte, argonSalt), nil
	}
	got, err := h.key(ctx, password, salt)
	return err == nil && subtle.ConstantTimeCompare(got, want) == 1, err
}
