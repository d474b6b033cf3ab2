package build

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/deis/deis/internal/paas"
)

const baseImagesHint = "Base images that are always here: deis/run, deis/build."

var (
	missingImage = regexp.MustCompile(`failed to resolve source metadata for ([^\s:]+(?::[0-9]+/[^\s:]+)?(?::[^\s:]+|@[^\s]+)?): `)
	missingFile  = regexp.MustCompile(`failed to calculate checksum of ref [^\s]+: ("[^"]*": not found)`)
	// brokenConnection is to BuildKit or, seen by BuildKit, to containerd.
	brokenConnection = regexp.MustCompile(`error reading from server: |connection error: desc = "|grpc: the client connection is closing`)
	// forbidden is an address that buildkitd does not fetch from.
	forbidden  = regexp.MustCompile(`(?:dial tcp|git repository on) (\S+): builds may not reach this address`)
	parseError = regexp.MustCompile(`^dockerfile parse error on line [0-9]+: `)
	// noise is what each layer of BuildKit and gRPC puts in front.
	noise = regexp.MustCompile(`^(failed to solve: |failed to run Build function: |failed to load cache key: |rpc error: code = \w+ desc = |process ".*" did not complete successfully: )`)
)

// refusedRights are BuildKit's entitlements, of which builds have none.
var refusedRights = map[string]string{
	"security.insecure": "RUN --security=insecure is not allowed here: steps get no more rights than the apps",
	"network.host":      "RUN --network=host is not allowed here: steps have a network of their own, which reaches the internet",
}

// explain turns BuildKit's error into one for the pusher: what failed, in which
// line of the Dockerfile, and why. The original stays in the chain.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("build ended early: %w", cause)
	}
	if known, ok := errors.AsType[*paas.Error](err); ok {
		return known
	}
	text := err.Error()
	if lostBuildKit(err) {
		return &paas.Error{Code: paas.Unavailable, Message: "the build service stopped during the build; push again", Err: err}
	}
	line, instruction := where(err)
	return &paas.Error{Code: paas.Invalid, Message: strings.TrimSpace(line + reason(err, text, instruction)), Err: err}
}

// distrustWords are what programs print when they do not trust a server's certificate: OpenSSL's, Go's, Node.js's, Python's and
// git's words.
var distrustWords = regexp.MustCompile(`SELF_SIGNED_CERT|UNABLE_TO_GET_ISSUER|UNABLE_TO_VERIFY_LEAF|CERTIFICATE_VERIFY_FAILED|` +
	`self[- ]signed certificate|unable to get (local )?issuer certificate|certificate signed by unknown authority|` +
	`certificate verif(y|ication) failed`)

// distrusts is asked of every line of a build: the words that all have come first.
func distrusts(line string) bool {
	return (strings.Contains(line, "CERT") || strings.Contains(line, "certificate") || strings.Contains(line, "ISSUER")) && distrustWords.MatchString(line)
}

// withTrustAdvice adds what may help a build that failed and whose output shows distrust.
func withTrustAdvice(err error) error {
	known, ok := errors.AsType[*paas.Error](err)
	if !ok || known.Code != paas.Invalid {
		return err
	}
	advised := *known
	advised.Message += "\nThe output shows that a server's certificate was not trusted. If your network has a certificate authority of its own,\n" +
		"the platform's operator can have builds trust it: DEIS_BUILD_CA_FILE."
	return &advised
}

// Exit codes of the program that runs buildpacks: those of CNB's lifecycle (platform specification).
const (
	exitNothingFits  = 20
	exitDetectFailed = 21
	exitBuildFailed  = 51
	exitKilled       = 137
)

// explainProgram turns the end of the program that runs buildpacks into an error for the pusher, who has seen its
// output. Other errors it returns as they are.
func explainProgram(err error) error {
	exit, ok := errors.AsType[*gatewaypb.ExitError](err)
	if !ok || exit.ExitCode == gatewaypb.UnknownExitStatus {
		return err
	}
	text := fmt.Sprintf("the build failed (exit code %d)", exit.ExitCode)
	switch exit.ExitCode {
	case exitNothingFits:
		text = "no buildpack fits these files; the lines above say what each looked for\n" +
			"Add what one of them needs, or a Dockerfile, or name a buildpack: deis config:set " + configBuildpack + "=https://..."
	case exitDetectFailed:
		text = "a buildpack failed while it looked at the files"
	case exitBuildFailed:
		text = "a buildpack failed; its output is above"
	case exitKilled:
		text = killed("build")
	}
	return &paas.Error{Code: paas.Invalid, Message: text, Err: err}
}

func killed(what string) string {
	return "the " + what + " was killed (exit code 137), often because it took too much memory"
}

// lostBuildKit reports whether the connection broke.
func lostBuildKit(err error) bool {
	return grpcerrors.Code(err) == codes.Unavailable || brokenConnection.MatchString(err.Error())
}

// missingBuilder explains why an image that every build needs cannot be had.
func missingBuilder(err error, name string) error {
	if paas.CodeOf(err) == paas.Invalid || lostBuildKit(err) {
		return err
	}
	return &paas.Error{
		Code: paas.Invalid, Err: err,
		Message: fmt.Sprintf("the builder image %s %s\nAsk the operator of the platform for it (deisctl builders), name another in %s, or add a Dockerfile",
			printable(name), whyMissing(err.Error()), configBuilder),
	}
}

// cannotFetch explains why a buildpack of the pusher's choice is not there. Nothing of the original goes into the
// chain of errors: it may quote credentials.
func cannotFetch(s buildpackSource, err error) error {
	if paas.CodeOf(err) == paas.Invalid || lostBuildKit(err) {
		return err
	}
	text := err.Error()
	var why string
	_, ended := errors.AsType[*gatewaypb.ExitError](err)
	switch {
	case strings.Contains(text, "executable file not found"): // runc starts no process
		why = "the builder image has no program that unpacks it; use a .tgz archive"
	case ended:
		why = "it cannot be unpacked"
	case s.kind == sourceImage:
		why = "the image " + whyMissing(text)
	default:
		why = clip(printable(s.redact(bare(text))), 2*maxName)
	}
	return &paas.Error{Code: paas.Invalid, Message: fmt.Sprintf("cannot fetch the buildpack %s: %s", s, why)}
}

// where returns "Dockerfile line 3: " and the instruction there, both empty when
// the error belongs to no line.
func where(err error) (line, instruction string) {
	sources := errdefs.Sources(err)
	if len(sources) == 0 {
		return "", ""
	}
	s := sources[0]
	if s.Info == nil || len(s.Ranges) == 0 {
		return "", ""
	}
	lines := strings.Split(string(s.Info.Data), "\n")
	start := int(s.Ranges[0].GetStart().GetLine())
	if start < 1 || start > len(lines) {
		return "", ""
	}
	instruction = strings.TrimSpace(lines[start-1])
	if strings.HasSuffix(instruction, `\`) || strings.Contains(instruction, "<<") {
		instruction = strings.TrimSpace(strings.TrimSuffix(instruction, `\`)) + " ..."
	}
	return fmt.Sprintf("Dockerfile line %d: ", start), clip(printable(instruction), maxName)
}

func reason(err error, text, instruction string) string {
	if exit, ok := errors.AsType[*gatewaypb.ExitError](err); ok && exit.ExitCode != gatewaypb.UnknownExitStatus {
		why := fmt.Sprintf("the command failed with exit code %d", exit.ExitCode)
		if exit.ExitCode == exitKilled {
			why = killed("command")
		}
		return instruction + "\n" + why
	}
	for entitlement, why := range refusedRights {
		if strings.Contains(text, entitlement+" is not allowed") {
			return instruction + "\n" + why
		}
	}
	if m := forbidden.FindStringSubmatch(text); m != nil {
		return instruction + "\nbuilds may not reach " + printable(m[1]) + ": it is this machine, something of the platform's, or link-local"
	}
	if m := missingImage.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("the image %s %s\n%s", printable(familiar(m[1])), whyMissing(text), baseImagesHint)
	}
	if m := missingFile.FindStringSubmatch(text); m != nil {
		return instruction + "\n" + printable(m[1]) + " in the pushed files (see also .dockerignore)"
	}
	if strings.Contains(text, "no space left on device") {
		return instruction + "\nthe disk of the build machine is full"
	}
	return clip(printable(bare(text)), 4*maxName)
}

// bare is an error's text without what each layer put in front.
func bare(text string) string {
	for stripped := ""; stripped != text; {
		stripped = text
		text = parseError.ReplaceAllString(noise.ReplaceAllString(text, ""), "")
	}
	return text
}

// familiar is an image's name as people write it.
func familiar(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/"), "library/")
}

func whyMissing(text string) string {
	switch {
	case strings.Contains(text, "authorization failed"), strings.Contains(text, "access denied"), strings.Contains(text, "401 "), strings.Contains(text, "403 "):
		return "does not exist in its registry, or is private"
	case strings.HasSuffix(text, ": not found"):
		return "does not exist in its registry"
	default:
		return "is not on this machine, and its registry cannot be reached"
	}
}
