// Everything that runs in ring 0 after boot. Where KVM is PVM it is emulated: a few instructions each, no SSE.
//
// Interrupts use IST1, whose top is this vCPU's Counters: after the CPU has pushed its five words they are at 40(%rsp).

.text
.code64

.macro interrupt name, counter
.globl \name
\name:
    incq 40 + \counter(%rsp)
    movl $1, 40 + {wake}(%rsp)
    pushq %rax
    movl $0xfee000b0, %eax          // LAPIC: end of interrupt
    movl $0, (%rax)
    popq %rax
    iretq
.endm

interrupt on_tick, {ticks}
interrupt on_ipi, {ipis}
interrupt on_device, {device}

.globl on_spurious
on_spurious:
    iretq

// Ring 3 calls ring 0 by `ud2` with a call number in EAX that no stray ud2 has. It is a fault, so a migration between
// the instruction and its handler repeats it; a trap such as int3 could get lost there.
.globl on_invalid_opcode
on_invalid_opcode:
    cmpl ${call_halt}, %eax
    je halt
    cmpl ${call_out8}, %eax
    je out8
    cmpl ${call_out16}, %eax
    je out16
    cmpl ${call_in8}, %eax
    je in8
    cmpl ${call_in16}, %eax
    je in16
    pushq $0
    pushq $6
    jmp reflect

// RDX: address of Counters::wake. Sleeps unless an interrupt has come since it was cleared.
halt:
    addq $2, (%rsp)
    cmpl $0, (%rdx)
    jne 1f
    sti
    hlt
    cli
1:  iretq

// DX: port. ECX: value. Results in EAX.
out8:
    movl %ecx, %eax
    outb %al, %dx
    addq $2, (%rsp)
    iretq
out16:
    movl %ecx, %eax
    outw %ax, %dx
    addq $2, (%rsp)
    iretq
in8:
    xorl %eax, %eax
    inb %dx, %al
    addq $2, (%rsp)
    iretq
in16:
    xorl %eax, %eax
    inw %dx, %ax
    addq $2, (%rsp)
    iretq

// Any other exception is the guest's end: `on_exception` in ring 3 reports it.
.macro exception number, has_code=0
exception_\number:
    .if \has_code == 0
    pushq $0
    .endif
    pushq $\number
    jmp reflect
.endm

exception 0
exception 1
exception 2
exception 3
exception 4
exception 5
exception 6
exception 7
exception 8, 1
exception 9
exception 10, 1
exception 11, 1
exception 12, 1
exception 13, 1
exception 14, 1
exception 15
exception 16
exception 17, 1
exception 18
exception 19
exception 20
exception 21, 1

reflect:
    popq %rdi                       // Vector
    popq %rsi                       // Error code
    movq (%rsp), %rdx               // Where it happened
    movq %cr2, %rcx
    movq $on_exception, (%rsp)
    movq $0x33, 8(%rsp)
    movq $0x202, 16(%rsp)
    subq $1024, 24(%rsp)            // Beyond the red zone of what was interrupted
    andq $-16, 24(%rsp)
    subq $8, 24(%rsp)
    movq $0x2b, 32(%rsp)
    iretq

.section .rodata
.balign 8
.globl exception_handlers
exception_handlers:
    .quad exception_0, exception_1, exception_2, exception_3, exception_4, exception_5, on_invalid_opcode
    .quad exception_7, exception_8, exception_9, exception_10, exception_11, exception_12, exception_13
    .quad exception_14, exception_15, exception_16, exception_17, exception_18, exception_19, exception_20
    .quad exception_21
