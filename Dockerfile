# Images of the platform's programs, of which router is built by default:
#
#	docker build --target controller .
#	docker build --target builder .
#	docker build --target router .
#
# Where there are no images of Deis:
#
#	docker build --build-arg BUILD_BASE=golang:1.26-bookworm --build-arg RUN_BASE=debian:bookworm-slim .
#
# One machine needs none of them: deisctl runs the programs.
ARG BUILD_BASE=deis/build
ARG RUN_BASE=deis/run

FROM ${BUILD_BASE} AS source
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"
# The file system of images without an operating system, and the compiler's cache, which deis/build has content for.
RUN mkdir -p /root/.cache/go-build /image/etc/ssl/certs /image/usr/local/bin \
	&& install -d -m 1777 /image/tmp && install -d -o 1000 -g 1000 /image/var/lib/deis \
	&& cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/
WORKDIR /src
COPY . .
ARG VERSION=dev
ENV LDFLAGS="-s -w -X github.com/deis/deis/internal/daemon.Version=${VERSION}"

FROM source AS compile-controller
RUN --mount=type=cache,target=/root/.cache/go-build,from=source,source=/root/.cache/go-build --mount=type=cache,target=/root/go/pkg/mod \
	go build -ldflags "$LDFLAGS" -o /image/usr/local/bin/ ./cmd/controller

FROM source AS compile-builder
RUN --mount=type=cache,target=/root/.cache/go-build,from=source,source=/root/.cache/go-build --mount=type=cache,target=/root/go/pkg/mod \
	go build -ldflags "$LDFLAGS" -o /image/usr/local/bin/ ./cmd/builder

FROM source AS compile-router
RUN --mount=type=cache,target=/root/.cache/go-build,from=source,source=/root/.cache/go-build --mount=type=cache,target=/root/go/pkg/mod \
	go build -ldflags "$LDFLAGS" -o /image/usr/local/bin/ ./cmd/router

# With the engine containerd it has to be root on its host (--user 0, and the host's network).
FROM scratch AS controller
COPY --from=compile-controller /image/ /
ENV DEIS_CONTROLLER_ADDR=:8020
EXPOSE 8020
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/controller"]

# It runs git, and keeps builds within their limits by cgroups, which takes root.
FROM ${RUN_BASE} AS builder
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates git && rm -rf /var/lib/apt/lists/*
COPY --from=compile-builder /image/usr/local/bin/ /usr/local/bin/
EXPOSE 2222
ENTRYPOINT ["/usr/local/bin/builder"]

FROM scratch AS router
COPY --from=compile-router /image/ /
ENV DEIS_HTTP_ADDR=:8080 DEIS_HTTPS_ADDR=:8443
EXPOSE 8080 8443
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/router"]
