# Tidings, for those who build with a container engine; `make image` needs none.
# docker build -t tidings .
FROM rust:1.95.0-bookworm AS build
# The image's own: rust-toolchain.toml would fetch rustfmt and clippy.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tidings && strip target/release/tidings

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/tidings /usr/bin/tidings
USER 65532:65532
ENTRYPOINT ["/usr/bin/tidings"]
