/* Opcode field macros: only needed by assemblers. */
#pragma once
