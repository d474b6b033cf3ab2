package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inNamespace is set in the environment of the test program that plays a container's first process.
const inNamespace = "LIFECYCLE_TEST_FIRST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		os.Exit(firstProcess())
	}
	os.Exit(m.Run())
}

// firstProcess leaves processes behind as buildpacks may, and reports whether endOthers ended them.
func firstProcess() int {
	left := exec.Command("sh", "-c", "setsid sleep 1000 & (trap '' TERM; sleep 1000) & exit 0")
	if os.Getpid() != 1 || left.Run() != nil || endOthers() != nil {
		return 2
	}
	if err := syscall.Kill(-1, 0); err != syscall.ESRCH {
		return 1
	}
	return 0
}

func TestLeftProcessesEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if os.Getuid() == 0 { // may be forbidden to make user namespaces, and needs none
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestNoSecretLeaks(t *testing.T) {
	const canary = "canary-8f3a91"
	f := newFixture(t)
	f.add("x", "[ \"$SECRET\" = "+canary+" ] || exit 100", `
[ "$SECRET" = `+canary+` ]; [ "$(cat "$CNB_PLATFORM_DIR/env/SECRET")" = `+canary+` ]
mkdir a; echo content >a/file
printf '[types]\nlaunch = true\nbuild = true\ncache = true\n' >a.toml
printf '[[processes]]\ntype = "web"\ncommand = ["x"]\n' >launch.toml`)
	f.setOrder("x")
	f.request["env"] = map[string]string{"SECRET": canary, "PATH": "/opt/" + canary}
	b := f.build()
	if strings.Contains(b.out, canary) {
		t.Errorf("the output has the secret:\n%s", b.out)
	}
	for _, dir := range []string{f.output, f.layers} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if bytes.Contains(data, []byte(canary)) {
				t.Errorf("%s has the secret", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.request["env"] = map[string]string{"A/B": canary}
	if code, out := f.run(); code != 1 || strings.Contains(out, canary) {
		t.Errorf("exit status %d, output %q", code, out)
	}
	f.request["env"] = map[string]string{"ZERO": canary + "\x00"}
	if code, out := f.run(); code != 1 || strings.Contains(out, canary) {
		t.Errorf("exit status %d, output %q", code, out)
	}
}

func TestCertificates(t *testing.T) {
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO",
		"BUNDLE_SSL_CA_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "COMPOSER_CAFILE", "NODE_EXTRA_CA_CERTS",
	} {
		t.Setenv(name, "") // restored afterwards
	}
	f := newFixture(t)
	f.write(f.caBundle, "of the image")
	print := `
for name in SSL_CERT_FILE NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO; do
	eval "file=\$$name"
	echo "$name: $(tr '\n' ' ' <"$file")"
done
echo "PIP_CERT: $PIP_CERT"`
	f.add("x", print+"\nexit 0", print)
	f.setOrder("x")
	f.request["ca"] = "of the company"
	f.request["env"] = map[string]string{"PIP_CERT": "the app's own"}
	b := f.build()
	wantContains(t, b.out, "SSL_CERT_FILE: of the image of the company", "NODE_EXTRA_CA_CERTS: of the company",
		"GIT_SSL_CAINFO: of the image of the company", "PIP_CERT: the app's own")
	if env := strings.Join(b.config.Config.Env, " "); strings.Contains(env, "CERT") {
		t.Errorf("the image's environment: %s", env)
	}
}

func TestClassicBuildpack(t *testing.T) {
	f := newFixture(t)
	f.writeBuildpack(filepath.Join(f.buildpacks, "deis_classic/1.2.0"), classicID,
		`exit 0`,
		`. "$CNB_BUILDPACK_DIR/lib/shim.sh"; "$CNB_BUILDPACK_DIR/target/bin/compile" "$app"; pwd`)
	f.write(filepath.Join(f.buildpacks, "deis_classic/1.2.0/lib/shim.sh"), "echo shim")
	for _, name := range []string{"One", "Two"} {
		f.write(filepath.Join(f.root, name, "bin/detect"), "#!/bin/sh\necho "+name)
		f.write(filepath.Join(f.root, name, "bin/compile"), "#!/bin/sh\necho compile "+name+" $(cat $1/hello.txt)")
	}
	f.request["order"] = json.RawMessage(`[{"group":[{"dir":"` + f.root + `/One"},{"dir":"` + f.root + `/Two"}]}]`)
	b := f.build()
	wantContains(t, b.out, "shim\ncompile One hello\n", "/deis_classic\n",
		"compile Two hello\n", "/deis_classic-2\n")
	if strings.Contains(b.out, "----->") {
		t.Errorf("headings besides those of the classic buildpacks:\n%s", b.out)
	}

	// Heroku's own have a descriptor; one with bin/build beside it may be Cloud Native of today.
	one := filepath.Join(f.root, "One")
	f.request["order"] = json.RawMessage(`[{"group":[{"dir":"` + one + `"}]}]`)
	f.write(filepath.Join(one, "buildpack.toml"), "[buildpack]\nname = \"One\"\n")
	wantContains(t, f.build().out, "compile One hello\n")
	today := "api = \"0.10\"\n[buildpack]\nid = \"heroku/one\"\nversion = \"1\"\n"
	f.write(filepath.Join(one, "buildpack.toml"), today)
	wantContains(t, f.build().out, "compile One hello\n")
	f.write(filepath.Join(one, "buildpack.toml"), "api = \"0.2\"\n[buildpack]\nid = \"heroku/one\"\nversion = \"1\"\n")
	f.write(filepath.Join(one, "bin/build"), "#!/bin/sh\necho cloud native\n")
	wantContains(t, f.build().out, "compile One hello\n")
	f.write(filepath.Join(one, "buildpack.toml"), today)
	wantContains(t, f.build().out, "cloud native\n")

	f.request["order"] = json.RawMessage(`[{"group":[{"dir":"` + f.app + `"}]}]`)
	code, out := f.run()
	if code != 1 {
		t.Errorf("exit status %d", code)
	}
	wantContains(t, out, "neither buildpack.toml (Cloud Native) nor bin/compile (Heroku)")
}

func TestCustomBuildpacks(t *testing.T) {
	f := newFixture(t)
	f.add("deis/procfile", "exit 0", "echo from the builder")
	custom := filepath.Join(f.root, "custom")
	f.writeBuildpack(custom, "me/own", "exit 0", "echo from the app")
	pack := filepath.Join(f.root, "package/cnb/buildpacks")
	f.writeBuildpack(filepath.Join(pack, "a_part/1.0.0"), "a/part", "exit 0", "echo part")
	f.writeBuildpack(filepath.Join(pack, "b_part/1.0.0"), "b/part", "exit 0", "echo other part")
	f.write(filepath.Join(pack, "z_whole/2.0.0/buildpack.toml"), `api = "0.10"
[buildpack]
id = "z/whole"
version = "2.0.0"
[[order]]
[[order.group]]
id = "a/part"
version = "1.0.0"
[[order.group]]
id = "b/part"
version = "1.0.0"
`)
	f.request["order"] = json.RawMessage(`[{"group":[{"dir":"` + custom + `"},{"dir":"` + f.root + `/package"},
		{"id":"none/such","version":"1.0.0","optional":true},{"id":"deis/procfile"}]}]`)
	code, out := f.run()
	if code != 22 {
		t.Errorf("exit status %d", code)
	}
	wantContains(t, out, "the builder has no buildpack none/such@1.0.0")
	f.request["order"] = json.RawMessage(strings.Replace(string(f.request["order"].(json.RawMessage)), "none/such", "me/own", 1))
	wantContains(t, f.build().out, "from the app\n", "\npart\n", "\nother part\n", "from the builder\n")

	f.request["order"] = json.RawMessage(`[{"group":[{"id":"deis/other"}]}]`)
	_, out = f.run()
	wantContains(t, out, "the builder has no buildpack deis/other")
	f.writeBuildpack(filepath.Join(f.buildpacks, "deis_procfile/2.0.0"), "deis/procfile", "", "")
	f.request["order"] = json.RawMessage(`[{"group":[{"id":"deis/procfile"}]}]`)
	_, out = f.run()
	wantContains(t, out, "say which of 1.0.0, 2.0.0")
}

func TestOldBuildpackAPI(t *testing.T) {
	f := newFixture(t)
	f.add("x", "exit 0", "")
	f.setOrder("x")
	path := filepath.Join(f.buildpacks, "x/1.0.0/buildpack.toml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f.write(path, strings.Replace(string(data), `"0.10"`, `"0.2"`, 1))
	code, out := f.run()
	if code != 22 {
		t.Errorf("exit status %d", code)
	}
	wantContains(t, out, `buildpack x is written for Buildpack API "0.2"`)
}

func TestTargetOfRunImage(t *testing.T) {
	f := newFixture(t)
	f.add("x", "exit 0", `echo "$CNB_TARGET_OS $CNB_TARGET_ARCH $CNB_TARGET_DISTRO_NAME $CNB_TARGET_DISTRO_VERSION"`)
	f.setOrder("x")
	wantContains(t, f.build().out, "linux amd64 debian 12\n")
}

func TestMergedSBOM(t *testing.T) {
	f := newFixture(t)
	f.add("x", "exit 0", `
mkdir a
printf '[types]\nlaunch = true\n' >a.toml
cat >a.sbom.cdx.json <<END
{"bomFormat":"CycloneDX","specVersion":"1.4","components":[
 {"type":"library","bom-ref":"1","name":"left","version":"1.0","purl":"pkg:npm/left@1.0"},
 {"type":"library","bom-ref":"2","name":"right","version":"2.0"}],
 "dependencies":[{"ref":"1","dependsOn":["2","none"]},{"ref":"root","dependsOn":["1"]}]}
END
cat >launch.sbom.cdx.json <<END
{"bomFormat":"CycloneDX","specVersion":"1.5","components":[
 {"type":"library","bom-ref":"other","name":"left","version":"1.0","purl":"pkg:npm/left@1.0"},
 {"type":"library","bom-ref":"1","name":"third","version":"3.0","components":[{"type":"file","bom-ref":"2","name":"f"}]}],
 "dependencies":[{"ref":"1","dependsOn":["other"]}]}
END
cat >build.sbom.cdx.json <<END
{"bomFormat":"CycloneDX","specVersion":"1.3","components":[{"type":"application","name":"compiler","version":"9"}]}
END
`)
	f.setOrder("x")
	f.build()
	var merged struct {
		Format       string `json:"bomFormat"`
		SpecVersion  string
		Components   []struct{ Ref, Name, Scope string }
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	data, err := os.ReadFile(filepath.Join(f.output, "sbom.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(bytes.ReplaceAll(data, []byte(`"bom-ref"`), []byte(`"ref"`)), &merged); err != nil {
		t.Fatal(err)
	}
	got := string(mustJSON(merged))
	want := `{"bomFormat":"CycloneDX","SpecVersion":"1.5","Components":[` +
		`{"Ref":"1","Name":"left","Scope":""},{"Ref":"2","Name":"right","Scope":""},{"Ref":"1#2","Name":"third","Scope":""},` +
		`{"Ref":"application||compiler|9","Name":"compiler","Scope":"excluded"}],` +
		`"Dependencies":[{"Ref":"1","DependsOn":["2"]},{"Ref":"1#2","DependsOn":["1"]}]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNoSBOM(t *testing.T) {
	f := newFixture(t)
	f.add("x", "exit 0", "")
	f.setOrder("x")
	f.build()
	if exists(filepath.Join(f.output, "sbom.cdx.json")) {
		t.Error("there is an SBOM of nothing")
	}
	f.add("x", "exit 0", "echo '{}' >launch.sbom.cdx.json")
	code, out := f.run()
	if code != 62 {
		t.Errorf("exit status %d", code)
	}
	wantContains(t, out, "SBOM: a buildpack's sbom.cdx.json is not CycloneDX in JSON")
}
