package buildpacks_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// canary is a config value: no layer may hold it.
const canary = "canary-4f1d9c"

// TestLanguages runs the buildpacks of Python, Ruby and the fallback in the root of the build image, as its user cnb.
func TestLanguages(t *testing.T) {
	root := buildRoot(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *buildpackRun)
	}{
		{"python/requirements", testRequirements},
		{"python/uv", testUV},
		{"python/poetry", testPoetry},
		{"python/version", testPythonVersion},
		{"python/django", testDjango},
		{"python/web", testPythonWeb},
		{"ruby/bundler", testBundler},
		{"ruby/version", testRubyVersion},
		{"ruby/rails", testRails},
		{"fallback/detect", testFallback},
		{"python/example", testExample("python", "listening on port")},
		{"ruby/example", testExample("ruby", "listening on port")},
		{"fallback/example", testExample("shell", "Serving HTTP")},
	} {
		t.Run(test.name, func(t *testing.T) {
			name, _, _ := strings.Cut(test.name, "/")
			test.run(t, newRun(t, root, name))
		})
	}
}

func testRequirements(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "SECRET="+canary, "PIP_INDEX_URL=https://"+canary+"@pypi.example/simple")
	files := map[string]string{
		"vendor/tiny-1.0-py3-none-any.whl": wheel(t, "tiny", "1.0", nil, "other>=1"),
		"vendor/tiny-1.1-py3-none-any.whl": wheel(t, "tiny", "1.1", nil, "other>=1"),
		"vendor/other-2-py3-none-any.whl":  wheel(t, "other", "2", nil),
		"requirements.txt":                 "-r more/base.txt\n",
		"more/base.txt":                    "--no-index --find-links vendor\ntiny==1.0\n",
		"main.py":                          "print('hello')\n",
	}
	cold := b.build(files)
	want(t, cold, "Installing the packages of requirements.txt", "Successfully installed other-2 tiny-1.0", "web -> python main.py")
	tree := b.tree()
	if _, ok := tree["defaults/env.launch/PYTHONUNBUFFERED.default"]; !ok {
		t.Error("PYTHONUNBUFFERED is not set at launch")
	}
	b.wantSBOM("venv", "pkg:pypi/other@2", "pkg:pypi/tiny@1.0")
	b.wantByteCode()

	// As the lifecycle restores it: a layer for the launch only has no files.
	b.restore()
	start := time.Now()
	want(t, b.build(files), "Reusing the packages of the last build")
	t.Logf("unchanged: %s", time.Since(start).Round(time.Millisecond))
	if _, err := os.Stat(b.path("layers/venv")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the unchanged layer has files, which replace those of the last image")
	}
	b.wantSBOM("venv", "pkg:pypi/other@2", "pkg:pypi/tiny@1.0")

	b.restore()
	files["more/base.txt"] = strings.ReplaceAll(files["more/base.txt"], "1.0", "1.1")
	want(t, b.build(files), "Successfully installed other-2 tiny-1.1")
	b.wantSBOM("venv", "pkg:pypi/other@2", "pkg:pypi/tiny@1.1")

	files["more/base.txt"] = strings.ReplaceAll(files["more/base.txt"], "1.1", "1.0")
	b.fresh()
	b.build(files)
	if again := b.tree(); !maps.Equal(tree, again) {
		t.Errorf("two builds of the same differ: %v", differences(tree, again))
	}
	b.wantNoCanary()

	b.restore()
	files["more/base.txt"] += "absent\n"
	want(t, b.fail(files), "No matching distribution found for absent", " !     The packages could not be installed")
}

func testUV(t *testing.T, b *buildpackRun) {
	greeting, other := wheel(t, "greeting", "1.0", nil, "other"), wheel(t, "other", "2", nil)
	files := map[string]string{
		"vendor/greeting-1.0-py3-none-any.whl": greeting,
		"vendor/other-2-py3-none-any.whl":      other,
		"main.py":                              "",
		"requirements.txt":                     "absent\n",
		"pyproject.toml":                       "[project]\nname = \"app\"\nrequires-python = \">=3.10\"\ndependencies = [\"Greeting[fast]>=1\"]\n",
		"uv.lock": `version = 1
[[package]]
name = "app"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "greeting", extra = ["fast"] },
    { name = "colorama", marker = "sys_platform == 'win32'" },
]
[package.dev-dependencies]
dev = [{ name = "pytest" }]
[[package]]
name = "greeting"
version = "1.0"
source = { registry = "vendor" }
wheels = [{ path = "greeting-1.0-py3-none-any.whl", hash = "sha256:` + sum(greeting) + `" }]
[package.optional-dependencies]
fast = [{ name = "other" }]
[[package]]
name = "other"
version = "2"
source = { registry = "vendor" }
wheels = [{ path = "other-2-py3-none-any.whl", hash = "sha256:` + sum(other) + `" }]
[[package]]
name = "pytest"
version = "8.0"
source = { registry = "https://pypi.org/simple" }
`,
	}
	b.env = append(b.env, "PIP_NO_INDEX=1")
	want(t, b.build(files), "requirements.txt is not used: uv.lock is there", "Successfully installed greeting-1.0 other-2")

	stale := maps.Clone(files)
	stale["pyproject.toml"] = strings.Replace(files["pyproject.toml"], `fast]>=1"`, `fast]>=1", "new"`, 1)
	want(t, b.fail(stale), ` !     uv.lock does not have 'new' of pyproject.toml: run 'uv lock' and commit uv.lock`)

	tampered := maps.Clone(files)
	tampered["vendor/other-2-py3-none-any.whl"] = wheel(t, "other", "2", map[string]string{"evil.py": ""})
	want(t, b.fail(tampered), "DO NOT MATCH THE HASHES")

	leaving := maps.Clone(files)
	leaving["uv.lock"] = strings.ReplaceAll(files["uv.lock"], `registry = "vendor"`, `registry = "../etc"`)
	want(t, b.fail(leaving), " !     ../etc is outside the app")
}

func testPoetry(t *testing.T, b *buildpackRun) {
	greeting, other := wheel(t, "greeting", "1.0", nil), wheel(t, "other", "2", nil)
	lock := func(files string) string {
		return `[[package]]
name = "greeting"
version = "1.0"
python-versions = ">=3.8"
` + strings.ReplaceAll(files, "SUM", sum(greeting)) + `
[package.dependencies]
other = {version = "*", optional = true, markers = "extra == \"fast\""}
slow = {version = "*", optional = true, markers = "extra == \"slow\""}
backport = {version = "*", markers = "python_version < \"3.11\""}
[[package]]
name = "other"
version = "2"
python-versions = "*"
files = [{file = "other-2-py3-none-any.whl", hash = "sha256:` + sum(other) + `"}]
[[package]]
name = "pytest"
version = "8"
python-versions = "*"
files = []
[metadata]
lock-version = "2.1"
`
	}
	files := map[string]string{
		"vendor/greeting-1.0-py3-none-any.whl": greeting,
		"vendor/other-2-py3-none-any.whl":      other,
		"main.py":                              "",
		"poetry.lock":                          lock(`files = [{file = "greeting-1.0-py3-none-any.whl", hash = "sha256:SUM"}]`),
		"pyproject.toml": `[tool.poetry]
package-mode = false
[tool.poetry.dependencies]
python = "^3.9 || >=4.1 <5"
greeting = [{version = "^1.0", extras = ["fast"], python = ">=3.10"}, {version = "^0.9", python = "<3.10"}]
[tool.poetry.group.dev.dependencies]
pytest = "*"
`,
	}
	b.env = append(b.env, "PIP_NO_INDEX=1", "PIP_FIND_LINKS=vendor")
	want(t, b.build(files), "Installing the packages of poetry.lock", "Successfully installed greeting-1.0 other-2")

	// Poetry before 1.3 had all hashes at the end of the file.
	b.fresh()
	files["poetry.lock"] = lock("") + "[metadata.files]\ngreeting = [{file = \"x\", hash = \"sha256:" + sum(greeting) + "\"}]\n"
	want(t, b.build(files), "Successfully installed greeting-1.0 other-2")

	files["pyproject.toml"] = strings.Replace(files["pyproject.toml"], "^3.9 || >=4.1 <5", "~3.12", 1)
	want(t, b.fail(files), "pyproject.toml (tool.poetry.dependencies) asks for Python ~3.12; this builder has Python 3.11.")
	delete(files, "poetry.lock")
	files["pyproject.toml"] = strings.Replace(files["pyproject.toml"], "~3.12", "~3.11", 1)
	want(t, b.fail(files), " !     poetry.lock is missing: run 'poetry lock' and commit it")
}

func testPythonVersion(t *testing.T, b *buildpackRun) {
	for _, test := range []struct{ file, text, want string }{
		{".python-version", "3.13\n", ".python-version asks for Python 3.13; this builder has Python 3.11."},
		{".python-version", "pypy3.9-7.3\n", ".python-version says 'pypy3.9-7.3'; it has to be a version of Python, such as 3.11"},
		{"runtime.txt", "python-2.7.18\n", "Either write python-3.11 in runtime.txt, or use a builder that has 2.7.18"},
		{"pyproject.toml", "[project]\nname = \"a\"\nrequires-python = \"<3.11\"\n", "pyproject.toml (requires-python) asks for Python <3.11;"},
		{"pyproject.toml", "[project\n", "pyproject.toml: Expected ']'"},
	} {
		out := b.fail(map[string]string{"requirements.txt": "", test.file: test.text})
		want(t, out, " !     "+test.want)
	}
	out := b.build(map[string]string{"requirements.txt": "", "runtime.txt": "python-3.11.99\n", "pyproject.toml": "[tool.black]\n"})
	want(t, out, "runtime.txt says 3.11.99: Python 3.11.", "Python has no default web process")
	want(t, b.notDetected(map[string]string{"main.py": "", "pyproject.toml": "[tool.black]\n"}),
		"no requirements.txt, poetry.lock, uv.lock, or pyproject.toml with [project] or [tool.poetry], in the root")
}

func testDjango(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "PIP_NO_INDEX=1", "PIP_FIND_LINKS=vendor")
	files := map[string]string{
		"vendor/django-5.0-py3-none-any.whl":  wheel(t, "django", "5.0", map[string]string{"django/__init__.py": ""}),
		"vendor/gunicorn-22-py3-none-any.whl": wheel(t, "gunicorn", "22", map[string]string{"dist:entry_points.txt": "[console_scripts]\ngunicorn = gunicorn:run\n"}),
		"requirements.txt":                    "django\ngunicorn\n",
		"site/settings.py":                    "STATIC_ROOT = 'static'\n",
		"site/wsgi.py":                        "application = None\n",
		"manage.py":                           "import django, sys; print('ran', *sys.argv)\n",
	}
	ran := "ran manage.py collectstatic --noinput"
	want(t, b.build(files), ran, "web -> gunicorn --bind 0.0.0.0:$PORT 'site.wsgi:application'")
	b.restore()
	want(t, b.build(files), "Reusing", ran)

	// The layer's files are needed, so they are kept; when they are lost all the same they are made again.
	b.restore()
	if err := os.RemoveAll(b.path("layers/venv")); err != nil {
		t.Fatal(err)
	}
	want(t, b.build(files), "Installing", ran)
	b.env = append(b.env, "DISABLE_COLLECTSTATIC=1")
	if out := b.build(files); strings.Contains(out, ran) {
		t.Errorf("collectstatic is switched off:\n%s", out)
	}
	b.env = b.env[:len(b.env)-1]
	files["manage.py"] = "raise SystemExit('no SECRET_KEY')\n"
	want(t, b.fail(files), "no SECRET_KEY", "deis config:set DISABLE_COLLECTSTATIC=1")
}

func testPythonWeb(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "PIP_NO_INDEX=1", "PIP_FIND_LINKS=vendor")
	files := map[string]string{}
	for _, server := range []string{"gunicorn", "uvicorn"} {
		files["vendor/"+server+"-1-py3-none-any.whl"] = wheel(t, server, "1", map[string]string{
			"dist:entry_points.txt": fmt.Sprintf("[console_scripts]\n%s = %s:run\n", server, server),
		})
	}
	for _, test := range []struct{ requirements, file, text, web string }{
		{"gunicorn uvicorn", "app.py", "app = Flask(__name__)\n", "gunicorn --bind 0.0.0.0:$PORT 'app:app'"},
		{"gunicorn uvicorn", "src/shop/wsgi.py", "application: WSGI = make()\n", "gunicorn --bind 0.0.0.0:$PORT 'shop.wsgi:application'"},
		{"gunicorn uvicorn", "app/__init__.py", "def create_app(config=None):\n", "gunicorn --bind 0.0.0.0:$PORT 'app:create_app()'"},
		{"gunicorn uvicorn", "app/main.py", "app = FastAPI()\n", "uvicorn --host 0.0.0.0 --port $PORT app.main:app"},
		{"gunicorn uvicorn", "main.py", "def create_app():\n    return FastAPI()\n", "uvicorn --host 0.0.0.0 --port $PORT --factory main:create_app"},
		{"", "app.py", "app = Flask(__name__)\n", "python app.py"},
	} {
		app := maps.Clone(files)
		app["requirements.txt"] = strings.ReplaceAll(test.requirements, " ", "\n")
		app[test.file] = test.text
		b.build(app)
		if got := b.web(); !slices.Equal(got, []string{"bash", "-c", "exec " + test.web}) {
			t.Errorf("%s with %q: web is %q, want %q", test.file, test.requirements, got, test.web)
		}
	}
}

func testBundler(t *testing.T, b *buildpackRun) {
	b.env = append(b.env, "SECRET="+canary)
	files := gemfile("puma (5.6)\n      tiny", "rspec (3)", "tiny (1.0)")
	maps.Copy(files, map[string]string{
		"vendor/cache/tiny-1.0.gem": b.gem("tiny", "1.0", "g.extensions = ['ext/extconf.rb']", map[string]string{
			"ext/extconf.rb": "require 'mkmf'; create_makefile 'tiny'", "ext/tiny.c": "void Init_tiny(void) {}\n",
		}),
		"vendor/cache/tiny-1.1.gem": b.gem("tiny", "1.1", "", map[string]string{"lib/tiny.rb": ""}),
		"vendor/cache/puma-5.6.gem": b.gem("puma", "5.6", "g.add_dependency 'tiny'; g.executables = ['puma']", map[string]string{"bin/puma": ""}),
		"Gemfile":                   "source 'https://rubygems.org'\nruby '~> 3.1.0'\ngem 'puma'\ngem 'rspec', group: :test\n",
		"config.ru":                 "",
		".bundle/config":            "BUNDLE_PATH: elsewhere\n",
	})
	want(t, b.build(files), "Installing tiny 1.0 with native extensions", "Installing puma 5.6", "web -> bundle exec puma -p $PORT")
	b.wantSBOM("gems", "pkg:gem/puma@5.6", "pkg:gem/tiny@1.0")
	tree := b.tree()

	b.restore()
	start := time.Now()
	want(t, b.build(files), "Reusing the gems of the last build")
	t.Logf("unchanged: %s", time.Since(start).Round(time.Millisecond))
	b.wantSBOM("gems", "pkg:gem/puma@5.6", "pkg:gem/tiny@1.0")
	b.restore()
	changed := maps.Clone(files)
	changed["Gemfile.lock"] = strings.Replace(files["Gemfile.lock"], "tiny (1.0)", "tiny (1.1)", 1)
	start = time.Now()
	want(t, b.build(changed), "Installing tiny 1.1", "Using puma 5.6", "Removing tiny (1.0)")
	t.Logf("lock changed: %s", time.Since(start).Round(time.Millisecond))

	b.fresh()
	b.build(files)
	if again := b.tree(); !maps.Equal(tree, again) {
		t.Errorf("two builds of the same differ: %v", differences(tree, again))
	}
	b.wantNoCanary()

	b.fresh()
	delete(files, "vendor/cache/puma-5.6.gem")
	want(t, b.fail(files), " !     The gems could not be installed: see above.")
	delete(files, "Gemfile.lock")
	want(t, b.fail(files), " !     Gemfile.lock is missing: run 'bundle lock' and commit it")
	want(t, b.notDetected(map[string]string{"app.rb": ""}), "no Gemfile in the root")
}

func testRubyVersion(t *testing.T, b *buildpackRun) {
	for _, test := range []struct{ gemfile, dotfile, want string }{
		{"ruby '3.3.1', engine: 'ruby'", "", "Gemfile asks for Ruby 3.3.1; this builder has Ruby 3.1."},
		{"ruby '>= 2.7', '< 3.1'", "", `Either write ruby "~> 3.1.0" in the Gemfile and lock again`},
		{"", "ruby-3.4.2\n", ".ruby-version asks for Ruby 3.4.2; this builder has Ruby 3.1."},
		{"ruby 'three'", "", `Gemfile: Illformed requirement ["three"]`},
	} {
		files := gemfile()
		files["Gemfile"] = test.gemfile + "\n"
		if test.dotfile != "" {
			files[".ruby-version"] = test.dotfile
		}
		want(t, b.fail(files), " !     "+test.want)
	}
	files := gemfile()
	files["Gemfile"], files[".ruby-version"] = "source 'https://rubygems.org'\n", "3.1.99\n"
	want(t, b.build(files), ".ruby-version says 3.1.99: Ruby 3.1.", "Ruby has no default web process")
}

// railsApp is an app of Rails by its gems, with a rake of the test's.
func (b *buildpackRun) railsApp(rake string) map[string]string {
	b.t.Helper()
	files := gemfile("propshaft (1)", "railties (7)", "rake (13)")
	maps.Copy(files, map[string]string{
		"vendor/cache/propshaft-1.gem": b.gem("propshaft", "1", "", nil),
		"vendor/cache/railties-7.gem":  b.gem("railties", "7", "", nil),
		"vendor/cache/rake-13.gem":     b.gem("rake", "13", "g.executables = ['rake']; g.bindir = 'exe'", map[string]string{"exe/rake": rake}),
		"Gemfile":                      "source 'https://rubygems.org'\ngem 'propshaft'\ngem 'railties'\ngem 'rake'\n",
		"Rakefile":                     "",
	})
	return files
}

func testRails(t *testing.T, b *buildpackRun) {
	rake := `abort "no key" unless ENV["SECRET_KEY_BASE"]; require "fileutils"; FileUtils.mkdir_p "public/assets"
File.write "public/assets/app.css", ""; File.write "tmp/cache/assets/kept", ""; puts "ran #{ARGV} #{ENV["RAILS_ENV"]}"`
	files := b.railsApp(rake)
	want(t, b.build(files), `ran ["assets:precompile"] production`, "web -> bundle exec rails server -b 0.0.0.0 -p $PORT")
	for _, path := range []string{"workspace/public/assets/app.css", "layers/cache/assets/kept", "layers/defaults/env.launch/RAILS_LOG_TO_STDOUT.default"} {
		if _, err := os.Stat(b.path(path)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(b.path("workspace/tmp/cache/assets")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the image has the compiler's cache")
	}
}

func testFallback(t *testing.T, b *buildpackRun) {
	want(t, b.notDetected(map[string]string{"main.c": ""}), "no executable bin/start, start.sh, web or run in the root")
	want(t, b.notDetected(map[string]string{"start.sh": "#!/bin/sh\n"}), "start.sh is not executable: git update-index --chmod=+x start.sh, and commit")
	b.build(map[string]string{"bin/start": "#!/bin/sh\n", "web": "#!/bin/sh\n"})
	if got := b.web(); !slices.Equal(got, []string{"/workspace/bin/start"}) {
		t.Errorf("web is %q", got)
	}
}

// testExample builds an example, starts its web process as the launcher would, asks it, and ends it.
func testExample(name, ready string) func(*testing.T, *buildpackRun) {
	return func(t *testing.T, b *buildpackRun) {
		start := time.Now()
		b.buildDir(filepath.Join("..", "examples", name))
		cold := time.Since(start)
		b.serve(ready)
		b.restore()
		start = time.Now()
		out := b.buildDir(filepath.Join("..", "examples", name))
		t.Logf("%s: cold %s, unchanged %s", name, cold.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
		if name != "shell" {
			want(t, out, "Reusing")
		}
	}
}

// want fails the test unless out has all texts.
func want(t *testing.T, out string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in:\n%s", text, out)
		}
	}
}

// gemfile is a lock file with these gems, which are the dependencies of the app too.
func gemfile(gems ...string) map[string]string {
	lock := "GEM\n  remote: https://rubygems.org/\n  specs:\n"
	dependencies := "\nDEPENDENCIES\n"
	for _, gem := range gems {
		lock += "    " + gem + "\n"
		if name, _, _ := strings.Cut(gem, " "); name != "tiny" {
			dependencies += "  " + name + "\n"
		}
	}
	// A newer Bundler than this one has locked it.
	return map[string]string{"Gemfile.lock": lock + "\nPLATFORMS\n  ruby\n" + dependencies + "\nCHECKSUMS\n\nBUNDLED WITH\n   2.5.6\n"}
}

// wheel is a Python package with a module of its name, and files; "dist:" stands for its directory of metadata.
func wheel(t *testing.T, name, version string, files map[string]string, requires ...string) string {
	t.Helper()
	dist := fmt.Sprintf("%s-%s.dist-info/", name, version)
	metadata := fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\nProvides-Extra: fast\n", name, version)
	for _, r := range requires {
		metadata += "Requires-Dist: " + r + "\n"
	}
	all := map[string]string{
		name + ".py":      "def run():\n    pass\n",
		dist + "METADATA": metadata,
		dist + "WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
	}
	for path, text := range files {
		all[strings.Replace(path, "dist:", dist, 1)] = text
	}
	record := dist + "RECORD,,\n"
	var buf bytes.Buffer
	archive := zip.NewWriter(&buf)
	add := func(path, text string) {
		f, err := archive.Create(path)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		h := sha256.Sum256([]byte(all[path]))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", path, base64.RawURLEncoding.EncodeToString(h[:]), len(all[path]))
		add(path, all[path])
	}
	add(dist+"RECORD", record)
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])
}

// buildRoot unpacks the layers of the build image that these languages need.
func buildRoot(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("DEIS_TEST_BASE_CACHE")
	if cache == "" {
		cache = filepath.Join("..", ".deis", "cache", "base")
	}
	output(t, exec.Command("base/make-rootfs", cache))
	root := t.TempDir()
	for _, layer := range []string{"run.tar", "build.tar"} {
		output(t, exec.Command("tar", "-x", "-C", root, "-f", filepath.Join(cache, layer),
			"--exclude=./usr/share/nodejs", "--exclude=./usr/share/doc", "--exclude=./usr/libexec", "--exclude=./var"))
	}
	for _, dir := range []string{"proc", "tmp", "cnb", "layers", "workspace", "platform/env", "dev/shm"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), fs.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]int{"null": 3, "urandom": 9} {
		path := filepath.Join(root, "dev", name)
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|minor); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/proc/self/fd", filepath.Join(root, "dev/fd")); err != nil {
		t.Fatal(err)
	}
	return root
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// buildpackRun is one buildpack with the layers and the sources of one app, below a root.
type buildpackRun struct {
	t    *testing.T
	root string
	env  []string // config values
}

func newRun(t *testing.T, root, name string) *buildpackRun {
	t.Helper()
	b := &buildpackRun{t: t, root: root}
	b.use(name)
	b.fresh()
	return b
}

// use makes another buildpack the one that runs.
func (b *buildpackRun) use(name string) {
	b.t.Helper()
	b.empty("cnb")
	output(b.t, exec.Command("cp", "-r", name, b.path("cnb/buildpack")))
}

func (b *buildpackRun) path(path string) string { return filepath.Join(b.root, path) }

// empty makes a directory anew, owned by the user of the buildpacks.
func (b *buildpackRun) empty(dir string) {
	b.t.Helper()
	if err := os.RemoveAll(b.path(dir)); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Mkdir(b.path(dir), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chown(b.path(dir), 1000, 1000); err != nil {
		b.t.Fatal(err)
	}
}

// fresh drops all layers.
func (b *buildpackRun) fresh() { b.empty("layers") }

// restore does to the layers what the lifecycle does between builds.
func (b *buildpackRun) restore() {
	b.t.Helper()
	files, err := filepath.Glob(b.path("layers/*.toml"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			b.t.Fatal(err)
		}
		layer := strings.TrimSuffix(file, ".toml")
		types, metadata, _ := strings.Cut(string(text), "[metadata]")
		if !strings.Contains(types, "cache = true") {
			err = errors.Join(err, os.RemoveAll(layer))
		}
		if filepath.Base(layer) == "launch" {
			err = errors.Join(err, os.Remove(file))
		} else {
			err = errors.Join(err, os.WriteFile(file, []byte("[metadata]\n"+strings.ReplaceAll(metadata, "\n", "\n  ")), 0o644))
		}
		_ = os.Remove(layer + ".sbom.cdx.json")
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// command is one that runs in the root as the user cnb.
func (b *buildpackRun) command(env []string, argv ...string) *exec.Cmd {
	const enter = `mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev/shm" && exec /usr/sbin/chroot --userspec=1000:1000 "$0" env -C /workspace "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", enter, b.root}, argv...)...)
	cmd.Env = append([]string{"HOME=/home/cnb", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	return cmd
}

// phase runs bin/detect or bin/build on what is in the workspace.
func (b *buildpackRun) phase(name string) (string, error) {
	env := append([]string{
		"CNB_LAYERS_DIR=/layers", "CNB_PLATFORM_DIR=/platform", "CNB_BUILDPACK_DIR=/cnb/buildpack",
		"CNB_BUILD_PLAN_PATH=/tmp/plan.toml", "CNB_BP_PLAN_PATH=/tmp/plan.toml",
		"CNB_TARGET_OS=linux", "CNB_TARGET_ARCH=amd64",
	}, b.env...)
	out, err := b.command(env, "/cnb/buildpack/bin/"+name).CombinedOutput()
	return string(out), err
}

// source fills the workspace. A file that begins with "#!" in bin/, or is called web, is executable.
func (b *buildpackRun) source(files map[string]string) {
	b.t.Helper()
	b.empty("workspace")
	for path, text := range files {
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(path, "bin/") || path == "web" {
			mode = 0o755
		}
		path = b.path(filepath.Join("workspace", path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			b.t.Fatal(err)
		}
	}
	b.own()
}

func (b *buildpackRun) own() {
	output(b.t, exec.Command("chown", "-R", "1000:1000", b.path("workspace")))
}

// both runs detect, which has to pass, and build.
func (b *buildpackRun) both() (string, error) {
	b.t.Helper()
	if out, err := b.phase("detect"); err != nil || out != "" {
		b.t.Fatalf("detect: %v\n%s", err, out)
	}
	return b.phase("build")
}

func (b *buildpackRun) build(files map[string]string) string {
	b.t.Helper()
	b.source(files)
	out, err := b.both()
	if err != nil {
		b.t.Fatalf("build: %v\n%s", err, out)
	}
	return out
}

func (b *buildpackRun) buildDir(dir string) string {
	b.t.Helper()
	b.empty("workspace")
	output(b.t, exec.Command("cp", "-r", dir+"/.", b.path("workspace")))
	b.own()
	out, err := b.both()
	if err != nil {
		b.t.Fatalf("build: %v\n%s", err, out)
	}
	return out
}

func (b *buildpackRun) fail(files map[string]string) string {
	b.t.Helper()
	b.source(files)
	out, err := b.both()
	if err == nil {
		b.t.Errorf("the build should fail:\n%s", out)
	}
	return out
}

// notDetected is the one line that says why the app is not for this buildpack.
func (b *buildpackRun) notDetected(files map[string]string) string {
	b.t.Helper()
	b.source(files)
	out, err := b.phase("detect")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 100 || strings.Count(out, "\n") != 1 {
		b.t.Errorf("want exit status 100 and one line: %v\n%s", err, out)
	}
	return out
}

// tree is what the layers of the image are made of: the content, kind and mode of each file.
func (b *buildpackRun) tree() map[string]string {
	b.t.Helper()
	tree := map[string]string{}
	layers := b.path("layers")
	err := filepath.WalkDir(layers, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(layers, path)
		if err != nil || d.IsDir() || strings.HasPrefix(name, "cache") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if info.Mode().Type() == fs.ModeSymlink {
			var target string
			target, err = os.Readlink(path)
			content = []byte(target)
		}
		tree[name] = fmt.Sprintf("%v %s", info.Mode(), sum(string(content)))
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return tree
}

func differences(x, y map[string]string) []string {
	var names []string
	for name := range x {
		if x[name] != y[name] {
			names = append(names, name)
		}
	}
	for name := range y {
		if _, ok := x[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

func (b *buildpackRun) wantNoCanary() {
	b.t.Helper()
	out, err := exec.Command("grep", "-rl", canary, b.path("layers")).Output()
	if err == nil || len(out) > 0 {
		b.t.Errorf("a config value is in the layers: %s", out)
	}
}

// wantByteCode checks that byte code is there and has no times in it (PEP 552).
func (b *buildpackRun) wantByteCode() {
	b.t.Helper()
	files, err := filepath.Glob(b.path("layers/venv/lib/python3*/site-packages/__pycache__/*.pyc"))
	if err != nil || len(files) == 0 {
		b.t.Fatalf("no byte code: %v", err)
	}
	for _, file := range files {
		code, err := os.ReadFile(file)
		if err != nil {
			b.t.Fatal(err)
		}
		if code[4] != 1 {
			b.t.Errorf("%s is checked against a time or its source at each start", file)
		}
	}
}

func (b *buildpackRun) wantSBOM(layer string, purls ...string) {
	b.t.Helper()
	text, err := os.ReadFile(b.path("layers/" + layer + ".sbom.cdx.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	var bom struct {
		Format     string `json:"bomFormat"`
		Components []struct {
			Name, Version, PURL string
		}
	}
	if err := json.Unmarshal(text, &bom); err != nil || bom.Format != "CycloneDX" {
		b.t.Fatalf("%v: %s", err, text)
	}
	var got []string
	for _, c := range bom.Components {
		got = append(got, c.PURL)
	}
	if !slices.Equal(got, purls) {
		b.t.Errorf("components are %q, want %q", got, purls)
	}
}

var commandLine = regexp.MustCompile(`(?m)^type = "web"\ncommand = (\[.*\])\ndefault = true$`)

// web is the command of the default process.
func (b *buildpackRun) web() []string {
	b.t.Helper()
	text, err := os.ReadFile(b.path("layers/launch.toml"))
	if err != nil {
		b.t.Fatal(err)
	}
	match := commandLine.FindSubmatch(text)
	if match == nil {
		b.t.Fatalf("no process web in %s", text)
	}
	var command []string
	if err := json.Unmarshal(match[1], &command); err != nil {
		b.t.Fatal(err)
	}
	return command
}

// launchEnv is the environment that the launcher makes of the layers (buildpack specification, environment variables).
func (b *buildpackRun) launchEnv() []string {
	b.t.Helper()
	path := ""
	var env []string
	for _, layer := range []string{"venv", "gems", "defaults"} {
		if _, err := os.Stat(b.path("layers/" + layer + "/bin")); err == nil {
			path += "/layers/" + layer + "/bin:"
		}
		env = append(env, b.layerEnv(layer, "env.launch")...)
	}
	return append(env, "PATH="+path+"/usr/local/bin:/usr/bin:/bin")
}

// layerEnv is what a layer has for one phase.
func (b *buildpackRun) layerEnv(layer, phase string) (env []string) {
	b.t.Helper()
	files, err := filepath.Glob(b.path("layers/" + layer + "/" + phase + "/*"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, file := range files {
		value, err := os.ReadFile(file)
		if err != nil {
			b.t.Fatal(err)
		}
		if name, how, _ := strings.Cut(filepath.Base(file), "."); how != "delim" {
			env = append(env, name+"="+string(value))
		}
	}
	return env
}

// serve starts the process web, waits until it says that it is ready, asks it, and ends it.
func (b *buildpackRun) serve(ready string) {
	b.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	_ = listener.Close()
	cmd := b.command(append(b.launchEnv(), "PORT="+port, "POWERED_BY=a test"), b.web()...)
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, time.Second
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	body, err := ask("http://127.0.0.1:" + port + "/")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if end := cmd.Wait(); end != nil || err != nil || body != "Powered by a test\n" {
		b.t.Errorf("answer %q, %v; ended with %v; log:\n%s", body, err, end, log)
	}
	want(b.t, log.String(), ready, "ended")
}

// ask asks until there is an answer.
func ask(url string) (string, error) {
	var resp *http.Response
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if resp, err = http.Get(url); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// gem is a Ruby gem, made by the gem program of the root.
func (b *buildpackRun) gem(name, version, more string, files map[string]string) string {
	b.t.Helper()
	list := slices.Sorted(maps.Keys(files))
	spec := fmt.Sprintf("Gem::Specification.new do |g|\ng.name = %q\ng.version = %q\ng.summary = %q\ng.authors = [%q]\ng.files = %%w[%s]\n%s\nend\n",
		name, version, "a test's", "a test", strings.Join(list, " "), more)
	all := map[string]string{"a.gemspec": spec}
	maps.Copy(all, files)
	b.source(all)
	output(b.t, b.command(nil, "gem", "build", "--silent", "--force", "--output", "out.gem", "a.gemspec"))
	made, err := os.ReadFile(b.path("workspace/out.gem"))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(made)
}
