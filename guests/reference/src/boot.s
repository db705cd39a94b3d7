// From power-on to ring 3. The boot vCPU arrives in 32-bit protected mode by the PVH boot protocol, the others in real
// mode by INIT and SIPI; both then take the same path:
//
//   pvh_entry (32 bit) -----------------------+
//                                             v
//   ap_trampoline (16 bit) -> ap_entry -> long_mode -> enter_ring3 (64 bit) -> boot_main or ap_main, in ring 3
//
// All of this is run by an instruction emulator where KVM is PVM, so it is short and uses nothing unusual.

.set GDT_CODE32, 0x08
.set GDT_CODE64, 0x10
.set GDT_DATA, 0x18
.set GDT_USER_DATA, 0x2b            // With Linux's selectors for ring 3, which PVM takes for granted.
.set GDT_USER_CODE64, 0x33
.set GDT_TSS, 0x40

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .boot, "ax"
.code32
.globl pvh_entry
pvh_entry:
    cli
    movl %ebx, start_info_address
    movb $0xff, %al                 // Mask the PIC: it comes unmasked out of reset, wired to LINT0.
    outb %al, $0x21
    outb %al, $0xa1
    movl $0x40000000, %eax          // Ask KVM, if it is KVM, for a clock page.
    cpuid
    cmpl $0x4b4d564b, %ebx
    jne 1f
    movl $0x40000001, %eax
    cpuid
    testl $(1 << 3), %eax           // KVM_FEATURE_CLOCKSOURCE2
    jz 1f
    movl $0x4b564d01, %ecx          // MSR_KVM_SYSTEM_TIME_NEW
    movl $clock_page + 1, %eax
    xorl %edx, %edx
    wrmsr
1:  movl $boot_cpu, %edi
    movl $boot_main, %esi
    jmp long_mode

ap_entry:
    movw $GDT_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl ap_cpu, %edi
    movl $ap_main, %esi

// EDI: this vCPU's Cpu. ESI: where to go in ring 3.
long_mode:
    lgdt boot_gdt_pointer
    movl $0x620, %eax               // PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          // EFER: SCE, LME, NXE
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl $0x80050033, %eax          // PG, AM, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $GDT_CODE64, $enter_ring3

.code64
enter_ring3:
    movl %edi, %ebx
    movl %esi, %edx
    movl $boot_gdt, %esi            // A GDT of its own, with a TSS of its own.
    leaq {gdt}(%rbx), %rdi
    movl $10, %ecx
    rep movsq
    leaq {tss}(%rbx), %rax
    movw %ax, {gdt} + GDT_TSS + 2(%rbx)
    shrl $16, %eax
    movb %al, {gdt} + GDT_TSS + 4(%rbx)
    movb %ah, {gdt} + GDT_TSS + 7(%rbx)
    leaq {gate_stack_top}(%rbx), %rax
    movq %rax, {tss} + 4(%rbx)      // RSP0
    leaq {counters}(%rbx), %rax
    movq %rax, {tss} + 36(%rbx)     // IST1: handlers find the counters right above their stack.
    movw $104, {tss} + 102(%rbx)    // No I/O bitmap.

    leaq {gdt}(%rbx), %rax           // The operand of lgdt, in the stack that is still empty.
    movq %rax, {gate_stack_top} - 8(%rbx)
    movw $79, {gate_stack_top} - 10(%rbx)
    lgdt {gate_stack_top} - 10(%rbx)
    lidt idt_pointer
    movw $GDT_TSS, %ax
    ltr %ax
    movw $GDT_DATA, %ax
    movw %ax, %ss
    leaq {gate_stack_top}(%rbx), %rsp
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movw $GDT_USER_DATA, %ax
    movw %ax, %ds
    movw %ax, %es

    leaq {user_stack_top} - 8(%rbx), %rax
    movl %ebx, %edi
    pushq $GDT_USER_DATA
    pushq %rax
    pushq $0x202                    // RFLAGS: interrupts on
    pushq $GDT_USER_CODE64
    pushq %rdx
    iretq

// Copied below 1 MiB, where SIPI starts a vCPU in real mode.
.code16
.globl ap_trampoline
ap_trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $GDT_CODE32, $ap_entry
    .balign 4
ap_gdt_pointer:
    .word 79
    .long boot_gdt
.globl ap_trampoline_end
ap_trampoline_end:

.section .tables, "aw"
.balign 4096
.globl pml4, pdpt
pml4:
    .quad pdpt + 0x27               // Present, writable, user, accessed
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0027
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:                   // The first 4 GiB: present, writable, user, accessed, dirty, 2 MiB each
    .set address, 0
    .rept 2048
    .quad address + 0xe7
    .set address, address + 0x200000
    .endr

.balign 16
boot_gdt:                           // All with the accessed bit set, so that the CPU need not.
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0
    .quad 0x0000890000000067        // TSS, base to be filled in
    .quad 0
boot_gdt_pointer:
    .word 79
    .long boot_gdt
.balign 2
idt_pointer:
    .word 4095
    .quad idt
.balign 4
.globl start_info_address, ap_cpu
start_info_address:
    .long 0
ap_cpu:
    .long 0
