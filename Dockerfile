# TEMPT, one image for every service of docker-compose.yml.
#   BASE_IMAGE   a Debian image with Python 3.11 or newer
#   TORCH_INDEX  where pip takes torch from, instead of its own settings: an index of builds for CPUs (README)
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# A new named volume takes over the owner and the content of the folder that it is mounted on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tempt \
    && install -d -m 700 -o tempt -g tempt /server /server/run.server /server/run.server/told /front /hospital

ENV PATH=/opt/tempt/bin:$PATH \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/tempt/source
COPY constraints.txt ./
RUN python -m venv /opt/tempt \
    && pip install --quiet --constraint constraints.txt pip
# torch first and alone, as only it may come from another index. Builds for CUDA, which are several GB, need triton;
# those for CPUs do not.
ARG TORCH_INDEX
RUN echo 'triton<0' > cpu-only.txt \
    && pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint cpu-only.txt \
        "$(grep '^torch==' constraints.txt)" \
    || { echo 'error: pip found no build of torch for CPUs; name an index that has them: --build-arg TORCH_INDEX=URL' >&2; \
        exit 1; }
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --quiet --constraint constraints.txt --constraint cpu-only.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY shared_model shared_model
COPY hospital_client hospital_client
COPY server server
COPY sim sim
RUN pip install --quiet --build-constraint constraints.txt --no-deps . \
    && pip check
COPY containers/healthy.py /opt/tempt/healthy.py

# the root file system is read-only: what looks for a home finds the one folder that is not
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["tempt"]
