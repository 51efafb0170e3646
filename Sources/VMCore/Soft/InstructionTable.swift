import CZydis

/// Which instruction is executed how.
extension InstructionDecoder {
    mutating func translate() {
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_MOV: move()
        case ZYDIS_MNEMONIC_ADD: alu(.add8)
        case ZYDIS_MNEMONIC_OR: alu(.or8)
        case ZYDIS_MNEMONIC_ADC: alu(.adc8)
        case ZYDIS_MNEMONIC_SBB: alu(.sbb8)
        case ZYDIS_MNEMONIC_AND: alu(.and8)
        case ZYDIS_MNEMONIC_SUB: alu(.sub8)
        case ZYDIS_MNEMONIC_XOR: alu(.xor8)
        case ZYDIS_MNEMONIC_CMP: alu(.cmp8, readsOnly: true)
        case ZYDIS_MNEMONIC_TEST: alu(.test8, readsOnly: true)
        case ZYDIS_MNEMONIC_INC: unary(.inc8)
        case ZYDIS_MNEMONIC_DEC: unary(.dec8)
        case ZYDIS_MNEMONIC_NEG: unary(.neg8)
        case ZYDIS_MNEMONIC_NOT: unary(.not8)
        case ZYDIS_MNEMONIC_MOVZX: extend(signed: false)
        case ZYDIS_MNEMONIC_MOVSX, ZYDIS_MNEMONIC_MOVSXD: extend(signed: true)
        case ZYDIS_MNEMONIC_LEA: leaAddress()
        case ZYDIS_MNEMONIC_PUSH: push()
        case ZYDIS_MNEMONIC_POP: pop()
        case ZYDIS_MNEMONIC_JMP: jump()
        case ZYDIS_MNEMONIC_CALL: call()
        case ZYDIS_MNEMONIC_RET: ret()
        case ZYDIS_MNEMONIC_JO: jump(if: 0)
        case ZYDIS_MNEMONIC_JNO: jump(if: 1)
        case ZYDIS_MNEMONIC_JB: jump(if: 2)
        case ZYDIS_MNEMONIC_JNB: jump(if: 3)
        case ZYDIS_MNEMONIC_JZ: jump(if: 4)
        case ZYDIS_MNEMONIC_JNZ: jump(if: 5)
        case ZYDIS_MNEMONIC_JBE: jump(if: 6)
        case ZYDIS_MNEMONIC_JNBE: jump(if: 7)
        case ZYDIS_MNEMONIC_JS: jump(if: 8)
        case ZYDIS_MNEMONIC_JNS: jump(if: 9)
        case ZYDIS_MNEMONIC_JP: jump(if: 10)
        case ZYDIS_MNEMONIC_JNP: jump(if: 11)
        case ZYDIS_MNEMONIC_JL: jump(if: 12)
        case ZYDIS_MNEMONIC_JNL: jump(if: 13)
        case ZYDIS_MNEMONIC_JLE: jump(if: 14)
        case ZYDIS_MNEMONIC_JNLE: jump(if: 15)
        case ZYDIS_MNEMONIC_CMOVO: conditional(move: 0)
        case ZYDIS_MNEMONIC_CMOVNO: conditional(move: 1)
        case ZYDIS_MNEMONIC_CMOVB: conditional(move: 2)
        case ZYDIS_MNEMONIC_CMOVNB: conditional(move: 3)
        case ZYDIS_MNEMONIC_CMOVZ: conditional(move: 4)
        case ZYDIS_MNEMONIC_CMOVNZ: conditional(move: 5)
        case ZYDIS_MNEMONIC_CMOVBE: conditional(move: 6)
        case ZYDIS_MNEMONIC_CMOVNBE: conditional(move: 7)
        case ZYDIS_MNEMONIC_CMOVS: conditional(move: 8)
        case ZYDIS_MNEMONIC_CMOVNS: conditional(move: 9)
        case ZYDIS_MNEMONIC_CMOVP: conditional(move: 10)
        case ZYDIS_MNEMONIC_CMOVNP: conditional(move: 11)
        case ZYDIS_MNEMONIC_CMOVL: conditional(move: 12)
        case ZYDIS_MNEMONIC_CMOVNL: conditional(move: 13)
        case ZYDIS_MNEMONIC_CMOVLE: conditional(move: 14)
        case ZYDIS_MNEMONIC_CMOVNLE: conditional(move: 15)
        case ZYDIS_MNEMONIC_SETO: set(0)
        case ZYDIS_MNEMONIC_SETNO: set(1)
        case ZYDIS_MNEMONIC_SETB: set(2)
        case ZYDIS_MNEMONIC_SETNB: set(3)
        case ZYDIS_MNEMONIC_SETZ: set(4)
        case ZYDIS_MNEMONIC_SETNZ: set(5)
        case ZYDIS_MNEMONIC_SETBE: set(6)
        case ZYDIS_MNEMONIC_SETNBE: set(7)
        case ZYDIS_MNEMONIC_SETS: set(8)
        case ZYDIS_MNEMONIC_SETNS: set(9)
        case ZYDIS_MNEMONIC_SETP: set(10)
        case ZYDIS_MNEMONIC_SETNP: set(11)
        case ZYDIS_MNEMONIC_SETL: set(12)
        case ZYDIS_MNEMONIC_SETNL: set(13)
        case ZYDIS_MNEMONIC_SETLE: set(14)
        case ZYDIS_MNEMONIC_SETNLE: set(15)
        case ZYDIS_MNEMONIC_ROL: shift(0)
        case ZYDIS_MNEMONIC_ROR: shift(1)
        case ZYDIS_MNEMONIC_RCL: shift(2)
        case ZYDIS_MNEMONIC_RCR: shift(3)
        case ZYDIS_MNEMONIC_SHL: shift(4)
        case ZYDIS_MNEMONIC_SHR: shift(5)
        case ZYDIS_MNEMONIC_SAR: shift(7)
        case ZYDIS_MNEMONIC_IMUL: multiply()
        default: translateRest()
        }
    }

    private mutating func ret() {
        if instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR { return cold(.retFar, ends: true) }
        guard is64, size == 3 else { return cold(.retNear, ends: true) }
        emit(.ret64, imm: visible > 0 && isImmediate(0) ? imm(0) & 0xFFFF : 0)
    }

    private mutating func translateRest() {
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_PAUSE where instruction.raw.rex.B != 0:
            // F3 90 with REX.B is no PAUSE: it exchanges R8 with RAX.
            var op = make(.cold, a: Slot.gpr(8), b: Slot.gpr(GPR.rax))
            op.cold = .xchg
            emit(op)
        case ZYDIS_MNEMONIC_NOP, ZYDIS_MNEMONIC_PAUSE, ZYDIS_MNEMONIC_ENDBR64, ZYDIS_MNEMONIC_ENDBR32,
            ZYDIS_MNEMONIC_PREFETCH, ZYDIS_MNEMONIC_PREFETCHNTA, ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1,
            ZYDIS_MNEMONIC_PREFETCHT2, ZYDIS_MNEMONIC_PREFETCHW, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_MFENCE,
            ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT:
            emit(.nop)
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD,
            ZYDIS_MNEMONIC_MOVSQ:
            if instruction.opcode & 0xFE == 0xA4, instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT { string(.movs) } else { vector() }
        case ZYDIS_MNEMONIC_CMPSB, ZYDIS_MNEMONIC_CMPSW, ZYDIS_MNEMONIC_CMPSD, ZYDIS_MNEMONIC_CMPSQ:
            if instruction.opcode & 0xFE == 0xA6, instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT { string(.cmps) } else { vector() }
        case ZYDIS_MNEMONIC_SCASB, ZYDIS_MNEMONIC_SCASW, ZYDIS_MNEMONIC_SCASD, ZYDIS_MNEMONIC_SCASQ: string(.scas)
        case ZYDIS_MNEMONIC_LODSB, ZYDIS_MNEMONIC_LODSW, ZYDIS_MNEMONIC_LODSD, ZYDIS_MNEMONIC_LODSQ: string(.lods)
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ: string(.stos)
        case ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW, ZYDIS_MNEMONIC_INSD: string(.ins)
        case ZYDIS_MNEMONIC_OUTSB, ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD: string(.outs)
        case ZYDIS_MNEMONIC_IN: port(.in)
        case ZYDIS_MNEMONIC_OUT: port(.out)
        case ZYDIS_MNEMONIC_LOOP: branch(loop: .loop)
        case ZYDIS_MNEMONIC_LOOPE: branch(loop: .loope)
        case ZYDIS_MNEMONIC_LOOPNE: branch(loop: .loopne)
        case ZYDIS_MNEMONIC_JCXZ, ZYDIS_MNEMONIC_JECXZ, ZYDIS_MNEMONIC_JRCXZ: branch(loop: .jcxz)
        case ZYDIS_MNEMONIC_LES: cold(.loadFar, ends: true, extra: SegmentIndex.es)
        case ZYDIS_MNEMONIC_LDS: cold(.loadFar, ends: true, extra: SegmentIndex.ds)
        case ZYDIS_MNEMONIC_LSS: cold(.loadFar, ends: true, extra: SegmentIndex.ss)
        case ZYDIS_MNEMONIC_LFS: cold(.loadFar, ends: true, extra: SegmentIndex.fs)
        case ZYDIS_MNEMONIC_LGS: cold(.loadFar, ends: true, extra: SegmentIndex.gs)
        case ZYDIS_MNEMONIC_SMSW: cold(.smsw)
        case ZYDIS_MNEMONIC_CRC32: cold(.crc32, extra: sizeLog(operands[1]))
        case ZYDIS_MNEMONIC_ENTER:
            var op = make(.cold, imm: (imm(0) & 0xFFFF) << 32 | imm(1) & 31)
            op.cold = .enter
            emit(op)
        case ZYDIS_MNEMONIC_INT: cold(.int, ends: true)
        case ZYDIS_MNEMONIC_MOVNTI: store(0, from: slot(1), size: size)
        default:
            if let (code, ends) = Self.generic[instruction.mnemonic.rawValue] {
                cold(code, ends: ends)
            } else {
                vector()
            }
        }
    }

    private mutating func port(_ code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        // The size is that of AL, AX or EAX.
        let accumulator = code == .in ? 0 : 1
        op.form.bits = op.form.bits & ~3 | sizeLog(operands[accumulator])
        if isImmediate(1 - accumulator) {
            op.imm = imm(1 - accumulator) & 0xFF
            op.form.bits |= MicroOp.Form.immediate
        }
        emit(op)
    }

    /// The instructions whose handlers need nothing but the usual operands, and whether they end a block.
    private static let generic: [UInt32: (ColdCode, Bool)] = {
        let rows: [(ZydisMnemonic, ColdCode, Bool)] = [
            (ZYDIS_MNEMONIC_XCHG, .xchg, false), (ZYDIS_MNEMONIC_XADD, .xadd, false),
            (ZYDIS_MNEMONIC_CMPXCHG, .cmpxchg, false), (ZYDIS_MNEMONIC_CMPXCHG8B, .cmpxchg8b, false),
            (ZYDIS_MNEMONIC_CMPXCHG16B, .cmpxchg16b, false), (ZYDIS_MNEMONIC_BSWAP, .bswap, false),
            (ZYDIS_MNEMONIC_MOVBE, .movbe, false),
            (ZYDIS_MNEMONIC_PUSHA, .pusha, false), (ZYDIS_MNEMONIC_PUSHAD, .pusha, false),
            (ZYDIS_MNEMONIC_POPA, .popa, false), (ZYDIS_MNEMONIC_POPAD, .popa, false),
            (ZYDIS_MNEMONIC_PUSHF, .pushf, false), (ZYDIS_MNEMONIC_PUSHFD, .pushf, false),
            (ZYDIS_MNEMONIC_PUSHFQ, .pushf, false), (ZYDIS_MNEMONIC_POPF, .popf, true),
            (ZYDIS_MNEMONIC_POPFD, .popf, true), (ZYDIS_MNEMONIC_POPFQ, .popf, true),
            (ZYDIS_MNEMONIC_LEAVE, .leave, false),
            (ZYDIS_MNEMONIC_XLAT, .xlat, false),
            (ZYDIS_MNEMONIC_MUL, .mul, false), (ZYDIS_MNEMONIC_DIV, .div, false), (ZYDIS_MNEMONIC_IDIV, .idiv, false),
            (ZYDIS_MNEMONIC_SHLD, .shld, false), (ZYDIS_MNEMONIC_SHRD, .shrd, false),
            (ZYDIS_MNEMONIC_CBW, .cbw, false), (ZYDIS_MNEMONIC_CWDE, .cbw, false), (ZYDIS_MNEMONIC_CDQE, .cbw, false),
            (ZYDIS_MNEMONIC_CWD, .cwd, false), (ZYDIS_MNEMONIC_CDQ, .cwd, false), (ZYDIS_MNEMONIC_CQO, .cwd, false),
            (ZYDIS_MNEMONIC_LAHF, .lahf, false), (ZYDIS_MNEMONIC_SAHF, .sahf, false), (ZYDIS_MNEMONIC_CLC, .clc, false),
            (ZYDIS_MNEMONIC_STC, .stc, false), (ZYDIS_MNEMONIC_CMC, .cmc, false), (ZYDIS_MNEMONIC_CLD, .cld, false),
            (ZYDIS_MNEMONIC_STD, .std, false), (ZYDIS_MNEMONIC_SALC, .salc, false),
            (ZYDIS_MNEMONIC_BT, .bt, false), (ZYDIS_MNEMONIC_BTS, .bts, false), (ZYDIS_MNEMONIC_BTR, .btr, false),
            (ZYDIS_MNEMONIC_BTC, .btc, false), (ZYDIS_MNEMONIC_BSF, .bsf, false), (ZYDIS_MNEMONIC_BSR, .bsr, false),
            (ZYDIS_MNEMONIC_TZCNT, .tzcnt, false), (ZYDIS_MNEMONIC_LZCNT, .lzcnt, false),
            (ZYDIS_MNEMONIC_POPCNT, .popcnt, false),
            (ZYDIS_MNEMONIC_ADCX, .adcx, false), (ZYDIS_MNEMONIC_ADOX, .adox, false),
            (ZYDIS_MNEMONIC_DAA, .daa, false), (ZYDIS_MNEMONIC_DAS, .das, false), (ZYDIS_MNEMONIC_AAA, .aaa, false),
            (ZYDIS_MNEMONIC_AAS, .aas, false), (ZYDIS_MNEMONIC_AAM, .aam, false), (ZYDIS_MNEMONIC_AAD, .aad, false),
            (ZYDIS_MNEMONIC_BOUND, .bound, false), (ZYDIS_MNEMONIC_ARPL, .arpl, false),
            (ZYDIS_MNEMONIC_IRET, .iret, true), (ZYDIS_MNEMONIC_IRETD, .iret, true), (ZYDIS_MNEMONIC_IRETQ, .iret, true),
            (ZYDIS_MNEMONIC_INT3, .int3, true), (ZYDIS_MNEMONIC_INTO, .into, true), (ZYDIS_MNEMONIC_INT1, .int1, true),
            (ZYDIS_MNEMONIC_SYSCALL, .syscall, true), (ZYDIS_MNEMONIC_SYSRET, .sysret, true),
            (ZYDIS_MNEMONIC_SYSENTER, .sysenter, true), (ZYDIS_MNEMONIC_SYSEXIT, .sysexit, true),
            (ZYDIS_MNEMONIC_CLI, .cli, true), (ZYDIS_MNEMONIC_STI, .sti, true), (ZYDIS_MNEMONIC_HLT, .hlt, true),
            (ZYDIS_MNEMONIC_CPUID, .cpuid, false), (ZYDIS_MNEMONIC_RDTSC, .rdtsc, true),
            (ZYDIS_MNEMONIC_RDTSCP, .rdtscp, true), (ZYDIS_MNEMONIC_RDMSR, .rdmsr, true),
            (ZYDIS_MNEMONIC_WRMSR, .wrmsr, true), (ZYDIS_MNEMONIC_RDPMC, .rdpmc, true),
            (ZYDIS_MNEMONIC_RDRAND, .rdrand, true), (ZYDIS_MNEMONIC_RDSEED, .rdseed, true),
            (ZYDIS_MNEMONIC_CLTS, .clts, true), (ZYDIS_MNEMONIC_LMSW, .lmsw, true),
            (ZYDIS_MNEMONIC_LGDT, .lgdt, false), (ZYDIS_MNEMONIC_LIDT, .lidt, false),
            (ZYDIS_MNEMONIC_SGDT, .sgdt, false), (ZYDIS_MNEMONIC_SIDT, .sidt, false),
            (ZYDIS_MNEMONIC_LLDT, .lldt, true), (ZYDIS_MNEMONIC_SLDT, .sldt, false), (ZYDIS_MNEMONIC_LTR, .ltr, true),
            (ZYDIS_MNEMONIC_STR, .str, false), (ZYDIS_MNEMONIC_LAR, .lar, false), (ZYDIS_MNEMONIC_LSL, .lsl, false),
            (ZYDIS_MNEMONIC_VERR, .verr, false), (ZYDIS_MNEMONIC_VERW, .verw, false),
            (ZYDIS_MNEMONIC_INVLPG, .invlpg, true), (ZYDIS_MNEMONIC_INVD, .invd, true),
            (ZYDIS_MNEMONIC_WBINVD, .invd, true), (ZYDIS_MNEMONIC_SWAPGS, .swapgs, true),
            (ZYDIS_MNEMONIC_RDFSBASE, .rdfsbase, false), (ZYDIS_MNEMONIC_RDGSBASE, .rdgsbase, false),
            (ZYDIS_MNEMONIC_WRFSBASE, .wrfsbase, false), (ZYDIS_MNEMONIC_WRGSBASE, .wrgsbase, false),
            (ZYDIS_MNEMONIC_CLAC, .clac, true), (ZYDIS_MNEMONIC_STAC, .stac, true),
            (ZYDIS_MNEMONIC_XGETBV, .xgetbv, true), (ZYDIS_MNEMONIC_XSETBV, .xsetbv, true),
            (ZYDIS_MNEMONIC_VMCALL, .vmcall, true), (ZYDIS_MNEMONIC_VMMCALL, .vmcall, true),
            (ZYDIS_MNEMONIC_UD0, .undefined, true), (ZYDIS_MNEMONIC_UD1, .undefined, true),
            (ZYDIS_MNEMONIC_UD2, .undefined, true),
            (ZYDIS_MNEMONIC_ANDN, .andn, false), (ZYDIS_MNEMONIC_BEXTR, .bextr, false),
            (ZYDIS_MNEMONIC_BLSI, .blsi, false), (ZYDIS_MNEMONIC_BLSMSK, .blsmsk, false),
            (ZYDIS_MNEMONIC_BLSR, .blsr, false), (ZYDIS_MNEMONIC_BZHI, .bzhi, false), (ZYDIS_MNEMONIC_PDEP, .pdep, false),
            (ZYDIS_MNEMONIC_PEXT, .pext, false), (ZYDIS_MNEMONIC_MULX, .mulx, false), (ZYDIS_MNEMONIC_RORX, .rorx, false),
            (ZYDIS_MNEMONIC_SARX, .sarx, false), (ZYDIS_MNEMONIC_SHLX, .shlx, false), (ZYDIS_MNEMONIC_SHRX, .shrx, false),
        ]
        return Dictionary(rows.map { ($0.0.rawValue, ($0.1, $0.2)) }, uniquingKeysWith: { first, _ in first })
    }()
}
