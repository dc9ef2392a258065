# The image is the program alone: linked statically, on nothing. On a machine it works with the machine's own tools.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.com/cistern:0.1.0 --push .
#
# The compiler runs as the building machine's own kind, also for the other one.
FROM --platform=$BUILDPLATFORM rust:1.95.0-slim-trixie AS build
ARG TARGETARCH
WORKDIR /src

# A Rust target, and a C compiler that links for it (ring has some C), unless they are there.
RUN case "$TARGETARCH" in \
        amd64) machine=x86_64 packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
        arm64) machine=aarch64 packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
        *) echo "there is no image for the architecture '$TARGETARCH'" >&2; exit 1 ;; \
    esac; \
    target=$machine-unknown-linux-musl; \
    [ -d "$(rustc --print target-libdir --target $target)" ] || rustup target add $target || exit 1; \
    command -v $machine-linux-gnu-gcc \
        || { apt-get update && apt-get install --yes --no-install-recommends $packages; } || exit 1; \
    echo "export CARGO_BUILD_TARGET=$target TARGET_CC=$machine-linux-gnu-gcc" \
        "CARGO_TARGET_$(echo $target | tr a-z- A-Z_)_LINKER=$machine-linux-gnu-gcc" >/target.env

COPY . .
# what the compiler made is kept beside the image, so that only what changed is compiled again
RUN --mount=type=cache,target=/src/target \
    . /target.env && cargo build --release --locked && cp "target/$CARGO_BUILD_TARGET/release/cistern" /cistern

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cistern" \
      org.opencontainers.image.description="Storage pools for virtual machines on Kubernetes: a CSI driver" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /cistern /cistern
ENTRYPOINT ["/cistern"]
