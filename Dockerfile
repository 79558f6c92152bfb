# A service with a gallery in a file; mount the model, keys and gallery at /data.
#   docker build -t margrave .
#   docker run -p 8443:8443 -v ./data:/data margrave --model /data/model.safetensors \
#     --tls-certificate /data/certificate.pem --tls-key /data/key.pem
FROM python:3.12-slim
COPY . /margrave
RUN pip install --no-cache-dir -c /margrave/constraints.txt '/margrave[serve,gallery,milvus,align,onnx,baseline]' \
    && rm -rf /margrave && useradd --create-home margrave
USER margrave
WORKDIR /data
EXPOSE 8443
ENTRYPOINT ["margrave", "serve", "--host", "0.0.0.0", "--keys", "/data/keys.json", "--audit", "/data/audit.jsonl", \
            "--gallery", "/data/people.gallery"]
