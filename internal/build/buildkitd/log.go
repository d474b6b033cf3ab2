package buildkitd

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// forwardLogs sends what BuildKit and the containerd client log, all of it by
// logrus' global logger, to ours. Their "info" is our "debug": it tells of each
// step of each build.
func forwardLogs(log *slog.Logger) {
	logger := logrus.StandardLogger()
	logger.SetOutput(io.Discard)
	logger.ReplaceHooks(logrus.LevelHooks{})
	logger.AddHook(hook{log})
	logger.SetLevel(logrus.WarnLevel)
	if log.Enabled(context.Background(), slog.LevelDebug) {
		logger.SetLevel(logrus.DebugLevel)
	}
}

type hook struct{ log *slog.Logger }

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		if err, ok := v.(error); ok {
			v = err.Error()
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	h.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}
