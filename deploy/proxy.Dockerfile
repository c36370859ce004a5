# The proxy of compose.secure.yml: Debian's HAProxy, which Debian keeps patched.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/*
COPY proxy.sh /
RUN chmod 755 /proxy.sh
