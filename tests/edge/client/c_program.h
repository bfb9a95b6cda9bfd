/* A program in C that uses the client library against a daemon at `socket_path`; see c_program.c.
 */
#ifndef TESTS_EDGE_CLIENT_C_PROGRAM_H
#define TESTS_EDGE_CLIENT_C_PROGRAM_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
/* NULL when everything came out right, else the step that did not. Sends `image` (encoded bytes)
 * once borrowed and once placed; the daemon must answer each image with its bytes as they are. */
const char* run_c_program(const char* socket_path, const void* image, unsigned long image_bytes);
/* The same for a daemon with a model: continues `id_count` ids, then the rows [id_count, dim] of
 * f32 that mean them, borrowed, placed, and between the first and the last id. Each time the same
 * tokens must come. */
const char* run_c_embeddings(const char* socket_path, const int32_t* ids, unsigned long id_count,
                             const float* rows, unsigned long dim);
#ifdef __cplusplus
}
#endif
#endif
