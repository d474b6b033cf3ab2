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
	parseError       = regexp.MustCompile(`^dockerfile parse error on line [0-9]+: `)
	// noise is what each layer of BuildKit and gRPC puts in front.
	noise = regexp.MustCompile(`^(failed to solve: |failed to run Build function: |rpc error: code = \w+ desc = |process ".*" did not complete successfully: )`)
)

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
	if grpcerrors.Code(err) == codes.Unavailable || brokenConnection.MatchString(text) {
		return &paas.Error{Code: paas.Unavailable, Message: "the build service stopped during the build; push again", Err: err}
	}
	line, instruction := where(err)
	return &paas.Error{Code: paas.Invalid, Message: strings.TrimSpace(line + reason(err, text, instruction)), Err: err}
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
		if exit.ExitCode == 137 {
			why = "the command was killed (exit code 137), often because it took too much memory"
		}
		return instruction + "\n" + why
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
	for stripped := ""; stripped != text; {
		stripped = text
		text = parseError.ReplaceAllString(noise.ReplaceAllString(text, ""), "")
	}
	return clip(printable(text), 4*maxName)
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
