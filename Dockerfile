# Tollgate, by its own name and as /bin/ratelimit, and the demo's stats service, with the C library they are linked to and
# nothing else: no shell, no package manager, nothing that runs as root or writes to its own file system.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the layer, so the binaries are copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin tollgate --bin stats \
 && install -D -t /rootfs/usr/local/bin target/release/tollgate target/release/stats
# The libraries that the binaries name, and the loader, at the paths where they look for them.
RUN ldd /rootfs/usr/local/bin/* | grep -o '/[^ :]*\.so[^ :]*' | sort -u \
  | xargs cp --parents --dereference --target-directory=/rootfs \
 && mkdir -p /rootfs/etc /rootfs/bin \
 && ln -s /usr/local/bin/tollgate /rootfs/bin/ratelimit \
 && echo 'hosts: files dns' > /rootfs/etc/nsswitch.conf \
 && echo 'tollgate:x:65532:65532::/:/nonexistent' > /rootfs/etc/passwd \
 && echo 'tollgate:x:65532:' > /rootfs/etc/group \
 && cp -r config /rootfs/etc/tollgate

FROM scratch
COPY --from=build /rootfs /
USER 65532:65532
# Probes and scrapes come from outside the container.
ENV TOLLGATE_CONFIG=/etc/tollgate \
    TOLLGATE_HTTP_LISTEN=0.0.0.0:8080
EXPOSE 6070 8080 8081
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/tollgate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
