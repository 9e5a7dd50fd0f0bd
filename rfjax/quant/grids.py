"""Grids of the IQ formats: the points that an index of a block can name, and their signs.

A grid is a sorted subset of a lattice of digits: {0, 1, 2}^8 for the IQ1 and IQ2 formats,
{0, ..., 7}^4 for IQ3. The subsets were chosen by statistics when the formats were made, so they
are constants that no formula gives (origin: the `iq*_grid` tables of ggml's ggml-common.h). Here
each is one bit per point of its lattice, in the order of the number that the digits spell (first
element least significant), compressed; the i-th set bit is the point with index i.
"""

import base64
import zlib

import numpy as np

from rfjax.quant.bits import Array


def _grid(membership: str, base: int, digits: int) -> np.ndarray:
    """Points of a grid as words, first element in the lowest bits: uint32 `[points]`.

    Args:
        membership: one bit per lattice point (lowest bit of a byte first), zlib, base 85.
        base: values of a digit; it takes 2 bits of the word for 3 of them, 3 bits for 8.
        digits: elements of a point.
    """
    bits = np.frombuffer(zlib.decompress(base64.b85decode(membership)), np.uint8)
    number = np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.uint32)
    words = np.zeros_like(number)
    width = (base - 1).bit_length()
    for place in range(digits):
        words |= (number // np.uint32(base**place) % np.uint32(base)) << np.uint32(width * place)
    words.setflags(write=False)
    return words


def even_signs(code: Array) -> Array:
    """Signs stored without the eighth: it makes the number of minus signs even.

    uint32 codes of 7 bits to sign bytes of 8 bits, same shape.
    """
    parity = code ^ (code >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return code | (parity << 7)


def apply_signs(values: Array, signs: Array) -> Array:
    """Negates where a sign bit is set: int8 `[n, g, 8]` and uint32 `[n, g]` to int8 `[n, g, 8]`."""
    minus = (signs[:, :, None] >> np.arange(8, dtype=np.uint32).reshape(1, 1, 8)) & 1
    return values * (1 - 2 * minus.astype(np.int8))


IQ1_GRID = _grid(
    "c-k#eK}(!R7=CxE;dM-9V?RN1diSfb(^(PgE$L;EU0C#DLh=VZ*|bQ>IZZw%yXlwN6ha`hG?#HO$v6$G@ldv(umMk2dT"
    "8mb2WdTox*h^v8VtnDuD#8?@Vw9Syw7v(LR2?w<}y}3b9YJG^C&5*&qs>Nl?x;NhAB!%0hRecnsm$a2YwJ@;QqccSPG~"
    "@n#@N5uBY$^gNY22s7}?HYgoxmY#Y+!Ajh1yxWA4l1OzVO1-XRyWBes^wA;LAoBq<x!%nuPhFWp9`{&R@7DG%<XIwD^I"
    "s3Q$Jf@<B<<hd(0^?jzIHG8vQn*?-$Ub(LsHW&@kYNcQ%|}dP%c;av8KJU^mWiJv*28-WD<$YEG%#}+D!ES;XeDuFD(V"
    "lG#i@A4$V;H%7rH52w&LB_pg1xSvl=L<CZ@9?{WdkSxbxSuMq|l64F4MqT|O(RS}O@H(bLXvHn!_OntvSw2GXTKiD_6X"
    "GLxujp0!)qyF+V=7Bv?g3oFy??D1-6?{(2le%HQrc>Le(m#@Cb_P%)g$;r#{<KcsUbe#9?p_<1{H>jE?+1SCIq;Fwj@y"
    "PMjA_U90?}vdY$)D1%>fQq-z{36HBT$I&mG*v%J#A~V%aSj@pZtCEAg}V1eou`2@uUxU_YQ=)6;l3U7EjmAKr#y2F0kd"
    "O91c}@u6ikZ68>90+)KINV7E3oVy0wcNC7Qg*Gnz$6Ckekcj5w;yQl$8BcV}uIeIA*;9XR~L2uzcrHYS+2)y-rqrtcg6"
    "e{stpn$cM#il(dTBx(R&0u-;P1DmAvG}u@dX;b%ns9v~6p49X^c}lqEMlIFjzJBbrp$X4T{{D_p5YV7e^~xM<^E7<_56"
    "qcAaL=FI+lT|4v2#Y&dpW2-Egd@Fdf5G@Dheeu*|v(bMFD;1sQ1",
    base=3,
    digits=8,
)
"""2048 points, IQ1_S and IQ1_M."""

IQ2_XXS_GRID = _grid(
    "c-nPRORB^$43oj#tB`je2YP^R=KfcCw)5@K5e=lV<VbEmf91ogR%p3E0BR^O#16P=^@J3)+t0mx___f>P^zDolEn6;is"
    "&dxI!#Zg_{KuzkVd4Mw`?l*l~*(z5~c8Qj-!-YZym34v`$TQ4<4*~)dpL;rq|+W4irx`d$&)6^vGb7UkLBrzcFbHqcf>"
    "sMFwRxr;MTG;*}m%Qlby-@@TSk)X7om@@#uKQIjUUWQ&$2&y}*gX5TV=Bc|Cuh1wL(2Kn3A3Yj<N%;gblzhT7_jxp@MF"
    "=lA5st5R^Hl2J=^JV`E{Z0D^#$6R7",
    base=3,
    digits=8,
)
"""256 points."""

IQ2_XS_GRID = _grid(
    "c-mc2TdsvL2pkgnkBRPwCicH3cK=&BJX-bM<{ZTW!^|+oxJIi-qkD|rsuaR~iB<*?x~C4>8J0pJW<V>X*vo#SY&(-c)w"
    "(<-fCU6QVt|)*=>oJ=N8h~B3mmYKBw*Y)Ca<s*uvOak7T*la5<g=kAh?T96(5+bR(Mt@J=L5^n!u1sF+~=p=RjVCGbM+"
    "vDH*59tF!>kC`)-u3GzO}jM8X_r-*1ytubG*&a^iqGs?p-do}D8x2NWXU?%O)=7t88q040RdJ=Ak)9T+$YBcFD31^6BC"
    "_W+mG1}iEA-T}Oj@u6-pQ1yByIl9%`W3mW#F%j~<yh(N0zSL~oH^Zy%}}tQx4=M73#xoc?jNErTmD?iDs40;(&MG>YYM"
    "NuDE=SK;cc#9vM%q_=>7msuqjC",
    base=3,
    digits=8,
)
"""512 points."""

IQ2_S_GRID = _grid(
    "c-n1JU5W-F3~NE(E9iYHjPDBe{#V(wI=kPpE5rQ7#3X8F%Z9aF@G^(h-0EI3Em0|W3^QwctZ7zp0a8G#rYWS&oF&YfEj"
    "@sgh^u5FBBgC>LAkBEEtarKv-X}c)kMD5E9g)N*35uFS6j&;COQ!QC2=T0oAzp}=fs8f?3xctXeG?g^dQAA!2(KVP=j1"
    "x!<Qgx@l7F)Pu!TMd$m>{ZzEray(N$AzRb24)#*U9zYZZF^+2!@EVQ9?ARiEH!J<ErE8usn4?()-BQhW*1pE<<S|Z6aT"
    "82aQO}QP4+el6zUY~*z7~Sl6pK?p!Q_DMIhH4w7?joIO9P^#Dw9CRS7mu8OBC|vDii4FoWN_zK9m?6y$}qXC*pyH_2f!"
    ")+bXep&HXz~CYasM7Fd3(JhmM~KIbkHJ7yU4;E692~{FNElHOf~Fzm+TBn!W(JyjC6",
    base=3,
    digits=8,
)
"""1024 points."""

IQ3_XXS_GRID = _grid(
    "c-l=-F%H5o3_M%0RAmZ7_lgPeigaLyA4Q!IuVCbv_?)J2Rn;aw-<^~BWtxCXwzFx0%xW)eST<YW5KL&L;j#hAAHoX-c)"
    "&}FY<X@1m|7IGsjrX>q7@bAuHrcP3L2_`6x)_>^v5;&o?@Fdagv_Uo9H*utGOGEJ93R6P|L2rgx{U}Y-UnrS3sKYtPIb"
    "F!WdDS7|dsT<9UQCqzhJe8+4kK5km%XvHjm=J(sMgqk-e3v^zjTJayVggoDWMJzTWE4a0T)3l-9P!ydlNePrBA?Xny*@"
    "kmBo4W|8$?wEo20v5Uy_5",
    base=8,
    digits=4,
)
"""256 points."""

IQ3_S_GRID = _grid(
    "c-k#d!AiqG5PdVu!e&pqA>uXNMyUCUt<-~hDT4SrX{pfmmf{D9Rs{Q#&TgE;z`Qr}-rMBob#A|%IbF{W(Id*&Lkwq!%0"
    "~0(%@Ao{OU0lD_x2OXCI^OquXIKLt}o^pYnG?L6&oz+9HeSVPSrN(A}t!YmF^Xmp*3Qy-5G8(e|b5Y-VC?q(AA>+32wu"
    "C)HmEXp@c1}PT|h83}iuXSwt^ePGkv?U+Lf3a_=1ov?9@{igP&9v4ypFswx3&TJZ@M2_=SuX>*z&qp%+CoXl)ge8!drA"
    "@5Agyn!FG+()?*sDei}n1QT95(J|p-wR7#Aht{0!Hx!aZfy;cl!bD4D3uqR(zW`GY5;6>@R{_|3X$jRqNR^eu)^e<Ll^"
    "vCYlKPU1;QQ+o$IB(hKom+bHx0SXmXXwyZnVo8~6jd#wQ>",
    base=8,
    digits=4,
)
"""512 points."""
