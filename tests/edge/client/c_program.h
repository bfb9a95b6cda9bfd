/* A program in C that uses the client library against a daemon at `socket_path`; see c_program.c.
 */
#ifndef TESTS_EDGE_CLIENT_C_PROGRAM_H
#define TESTS_EDGE_CLIENT_C_PROGRAM_H
#ifdef __cplusplus
extern "C" {
#endif
/* NULL when everything came out right, else the step that did not. Sends `image` (encoded bytes)
 * once borrowed and once placed; the daemon must answer each image with its bytes as they are. */
const char* run_c_program(const char* socket_path, const void* image, unsigned long image_bytes);
#ifdef __cplusplus
}
#endif
#endif
