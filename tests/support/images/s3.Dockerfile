# SeaweedFS from its wheel, where the official image has it.
ARG BASE
FROM ${BASE}
COPY weed /usr/bin/weed
