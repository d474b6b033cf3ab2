package gitserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	gossh "golang.org/x/crypto/ssh"
)

// rsaBits is the least that is sound: only clients too old for the other types use the RSA key, and
// a longer one takes half a second of the first start.
const rsaBits = 2048

var hostKeyTypes = []struct {
	name string
	make func() (crypto.PrivateKey, error)
}{
	{"ed25519", func() (crypto.PrivateKey, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"ecdsa", func() (crypto.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"rsa", func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }},
}

// HostKeys reads the host keys in dir (ssh_host_<type>_key, OpenSSH's form) and
// makes those that are missing. A key that cannot be read is an error, never
// replaced: users' clients would refuse the new one.
func HostKeys(dir string) ([]gossh.Signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("host keys: %w", err)
	}
	var signers []gossh.Signer
	for _, t := range hostKeyTypes {
		path := filepath.Join(dir, "ssh_host_"+t.name+"_key")
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			text, err = newHostKey(path, t.make)
		}
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		signer, err := gossh.ParsePrivateKey(text)
		if err != nil {
			return nil, fmt.Errorf("host key %s: %w", path, err)
		}
		if signer, err = modern(signer); err != nil {
			return nil, fmt.Errorf("host key %s: %w", path, err)
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

// modern keeps an RSA key from signing with SHA-1.
func modern(signer gossh.Signer) (gossh.Signer, error) {
	alg, ok := signer.(gossh.AlgorithmSigner)
	if !ok || signer.PublicKey().Type() != gossh.KeyAlgoRSA {
		return signer, nil
	}
	return gossh.NewSignerWithAlgorithms(alg, []string{gossh.KeyAlgoRSASHA256, gossh.KeyAlgoRSASHA512})
}

func newHostKey(path string, generate func() (crypto.PrivateKey, error)) ([]byte, error) {
	key, err := generate()
	if err != nil {
		return nil, err
	}
	block, err := gossh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, writeFile(path, text, 0o600)
}

// writeFile replaces a file so that a crash leaves the old or the new one.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
